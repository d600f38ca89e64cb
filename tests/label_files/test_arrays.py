"""Files come back as the arrays that were written, or say what is wrong with them."""

import pickle
import re
import sys

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close
from torch.utils.data import DataLoader, Subset

from lightning_sobolev import (
    BatchTeacher,
    DirectionalTeacher,
    LabelFile,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from lightning_sobolev.label_files.sources import _FORMATS
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches
from tests.plugin._trainers import QUIET

RANDOM = np.random.default_rng(5)
ROWS, OUT, IN = 7, 2, 3
ARRAYS = {
    "m": RANDOM.normal(size=(ROWS, IN)),
    "q": RANDOM.normal(size=(ROWS, OUT)),
    "J": RANDOM.normal(size=(ROWS, OUT, IN)),
}
ARRAYS["J"][2, 1, 0] = np.nan
KEYS = {"x": "m", "y": "q", "jacobian": "J"}
ORDER = [5, 0, 3, 3]


def store(folder, kind, arrays=None):
    arrays = ARRAYS if arrays is None else arrays
    path = folder / f"set.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "npy":
        path = folder / "arrays"
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / name, array)
    elif kind == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        save = pytest.importorskip("safetensors.numpy").save_file
        save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def loaded(path, keys=KEYS, **changes):
    return LabelFile(path, keys, **{"dtype": torch.float64, **changes})


def refused(text, path, keys=KEYS, **changes):
    with pytest.raises(ValueError, match=f"(?s)^{text}"):
        loaded(path, keys, **changes)


def says(path, text=""):
    return re.escape(f"{path}{text}")


def same(found, expected):
    assert_close(found.numpy(), expected, rtol=0, atol=0, equal_nan=True)


def same_batch(batch, rows, arrays=ARRAYS):
    assert set(batch) == set(KEYS)
    for name, key in KEYS.items():
        same(batch[name], arrays[key][rows])


@pytest.fixture(params=["npz", "npy", "h5", "safetensors"])
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["read", "lazy"])
def lazy(request):
    return request.param


def test_every_format_gives_back_what_was_written(tmp_path, kind, lazy):
    data = loaded(store(tmp_path, kind), lazy=lazy)
    assert len(data) == ROWS
    for rows in (ORDER, slice(1, 6, 2), slice(2, 5), slice(None), slice(None, None, -1), []):
        taken = np.arange(ROWS)[rows if isinstance(rows, slice) else np.array(rows, dtype=int)]
        same_batch(data[rows], taken)
    for row in (0, ROWS - 1, -1):
        same_batch(data[row], row)
    same_batch(data[torch.tensor(ORDER)], ORDER)


def test_workers_open_files_for_themselves(tmp_path, kind):
    data = loaded(store(tmp_path, kind), lazy=True)
    assert data[0]  # read here before the workers start
    batches = list(DataLoader(data, batch_size=3, num_workers=2))
    same_batch({name: torch.cat([b[name] for b in batches]) for name in KEYS}, slice(None))


def test_a_lazy_set_is_small_in_a_pickle_and_reads_after_it(tmp_path, kind):
    arrays = {name: np.repeat(array, 100, 0) for name, array in ARRAYS.items()}
    packed = pickle.dumps(loaded(store(tmp_path, kind, arrays), lazy=True))
    assert len(packed) < 5000 < arrays["J"].nbytes
    same_batch(pickle.loads(packed)[ORDER], ORDER, arrays)


@pytest.mark.parametrize("kind", ["npz", "npy"], indirect=True)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpys_files_are_mapped_into_memory(tmp_path, kind, order):
    arrays = {name: np.asarray(array, order=order) for name, array in ARRAYS.items()}
    path = store(tmp_path, kind, arrays)
    _, opener = _FORMATS[f".{kind}"]
    with opener(path, True) as (_, get):
        for name, array in arrays.items():
            assert isinstance(get(name), np.memmap)
            assert not get(name).flags.writeable
            np.testing.assert_array_equal(get(name), array)


def test_a_jacobian_larger_than_the_memory_is_read_by_rows(tmp_path):
    rows, size = 2**14, 2**20  # 64 GB as numpy sees it; on the disk only what is written
    make = np.lib.format.open_memmap
    jacobian = make(tmp_path / "J.npy", mode="w+", dtype=np.float32, shape=(rows, 1, size))
    jacobian[[3, rows - 1]] = [[[3.0]], [[9.0]]]
    jacobian.flush()
    np.save(tmp_path / "m.npy", np.broadcast_to(np.float32(0), (rows, 1)))
    data = LabelFile(tmp_path, {"x": "m", "dydx": "J"}, lazy=True)
    loader = DataLoader(Subset(data, [rows - 1, 3]), batch_size=2, num_workers=2)
    found = next(iter(loader))["dydx"]
    assert_close(found, torch.tensor([9.0, 3.0])[:, None, None].expand(2, 1, size))


def test_other_byte_orders_and_types_become_the_asked_one(tmp_path, lazy):
    kept = {"mask": RANDOM.integers(0, 2, ROWS).astype(bool)}
    arrays = {name: array.astype(">f8") for name, array in ARRAYS.items()} | kept
    keys = {**KEYS, "mask": "mask"}
    data = LabelFile(store(tmp_path, "npz", arrays), keys, lazy=lazy)[:]
    assert data["jacobian"].dtype == torch.float32
    same(data["x"], ARRAYS["m"].astype(np.float32))
    same(data["mask"], kept["mask"])


def test_a_set_may_lie_in_several_files(tmp_path):
    np.savez(tmp_path / "mq.npz", m=ARRAYS["m"], q=ARRAYS["q"])
    np.save(tmp_path / "J.npy", ARRAYS["J"])
    same_batch(loaded([tmp_path / "mq.npz", tmp_path / "J.npy"])[:], slice(None))


def test_layouts_and_scales_turn_what_the_file_has(tmp_path, lazy):
    x, y = RANDOM.normal(size=(4, 2, 3)), RANDOM.normal(size=(4, 5))
    jacobian = RANDOM.normal(size=(4, 5, 2, 3))
    hessian = RANDOM.normal(size=(4, 5, 2, 3, 2, 3))
    stored = {
        "x": x, "y": y,
        "jt": np.einsum("bcij->bijc", jacobian) * 2, "ht": np.einsum("bcijkl->bijklc", hessian),
    }  # fmt: skip
    layout = {"jacobian": "x y -> y x", "hessian": "x x y -> y x x"}
    keys = {"x": "x", "y": "y", "jacobian": "jt", "hessian": "ht"}
    path = store(tmp_path, "npz", stored)
    data = loaded(path, keys, layout=layout, scale={"jacobian": 0.5}, lazy=lazy)
    same(data[:]["jacobian"], jacobian)
    same(data[[2, 1]]["hessian"], hessian[[2, 1]])


def test_several_inputs_and_other_names(tmp_path):
    shapes = {
        "s": (4, 3), "a": (4, 2), "V": (4,), "V_s": (4, 3), "V_a": (4, 1, 2), "V_sa": (4, 3, 2),
    }  # fmt: skip
    path = store(tmp_path, "npz", {name: np.ones(shape) for name, shape in shapes.items()})
    layout = {"V_s": "V s", "V_a": "V a", "V_sa": "V s a"}
    batch = loaded(path, {name: name for name in shapes}, layout=layout)[:]
    assert {name: tuple(array.shape) for name, array in batch.items()} == shapes


def test_a_missing_key_is_answered_with_those_there_are(tmp_path, kind):
    path = store(tmp_path, kind)
    refused(says(path, " must hold the key 'm_data', got ['J', 'm', 'q']"), path, {"x": "m_data"})


def test_a_key_in_two_files_is_refused(tmp_path):
    paths = [store(tmp_path, "npz"), store(tmp_path, "npy")]
    refused("files must hold the key 'm' once, got it in .*ConcatDataset", paths)


def test_a_compressed_array_is_read_but_not_mapped(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **ARRAYS)
    same_batch(loaded(path)[:], slice(None))
    refused(says(path, "['m'] must be an npz file") + ".*compressed.*lazy=False", path, lazy=True)


def test_numbers_of_rows_must_agree(tmp_path, kind):
    path = store(tmp_path, kind, ARRAYS | {"q": ARRAYS["q"][:5]})
    refused(f"files must be arrays of one number of rows, got .*{says(path)}.*5", path)


@pytest.mark.parametrize(
    ("jacobian", "got"),
    [
        (ARRAYS["J"].swapaxes(1, 2), r"\[7, 3, 2\], which is transposed: say layout=.*x y -> y x"),
        (ARRAYS["J"].reshape(7, 6), r"\[7, 6\]$"),
        (ARRAYS["J"][:, :1], r"\[7, 1, 3\]$"),
        (ARRAYS["J"][:, 0], r"\[7, 3\]$"),
    ],
)
def test_a_jacobian_of_another_shape_is_refused(tmp_path, kind, jacobian, got):
    path = store(tmp_path, kind, ARRAYS | {"J": jacobian})
    text = "['J'] must have the shape [rows, *y = [2], *x = [3]] for 'jacobian', got "
    refused(says(path, text) + got, path)


def test_what_the_hint_says_works(tmp_path):
    path = store(tmp_path, "npz", ARRAYS | {"J": ARRAYS["J"].swapaxes(1, 2)})
    with pytest.raises(ValueError, match="transposed") as raised:
        loaded(path)
    said = re.search(r"layout=({.*})", str(raised.value))[1]
    same_batch(loaded(path, layout=eval(said))[:], slice(None))
    refused(".*'y x -> y x'", store(tmp_path, "npz"), layout={"jacobian": "x y -> y x"})


@pytest.mark.parametrize(("key", "bad"), [("m", np.nan), ("q", np.inf), ("J", -np.inf)])
def test_bad_numbers_are_refused_where_they_are_read(tmp_path, kind, key, bad):
    array = ARRAYS[key].copy()
    array[4, 1] = bad
    path = store(tmp_path, kind, ARRAYS | {key: array})
    expected = "without Inf" if key == "J" else "finite"
    text = says(path, f"['{key}'] must be {expected} as torch.float64, got {bad} in row 4")
    refused(text, path)
    data = loaded(path, lazy=True)
    same_batch(data[:4], slice(0, 4))
    for rows in ([6, 4, 0], slice(3, 6), 4):
        with pytest.raises(ValueError, match=text):
            data[rows]


def test_what_the_type_cannot_hold_is_refused(tmp_path):
    path = store(tmp_path, "npz", ARRAYS | {"q": ARRAYS["q"] * 1e300})
    refused(".*must be finite as torch.float32, got -?inf in row 0", path, dtype=torch.float32)


@pytest.mark.parametrize("key", ["m", "q", "J"])
def test_what_is_differentiated_is_floating(tmp_path, kind, lazy, key):
    path = store(tmp_path, kind, ARRAYS | {key: np.ones(ARRAYS[key].shape, np.int32)})
    refused(says(path, f"['{key}'] must be floating, got torch.int32"), path, lazy=lazy)


class Unpickled:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("kind", ["npz", "npy"], indirect=True)
@pytest.mark.parametrize("array", [["a"] * ROWS, [1j] * ROWS, [Unpickled()] * ROWS])
def test_what_is_no_number_is_refused_and_nothing_unpickled(tmp_path, kind, array, lazy, capsys):
    path = store(tmp_path, kind, {"m": np.array(array)})
    refused(says(path, "['m'] must be ") + ".*(object|Object|dtype)", path, {"x": "m"}, lazy=lazy)
    assert capsys.readouterr().out == ""


def test_objects_are_not_even_mapped(tmp_path):
    path = store(tmp_path, "npz", {"m": np.array([None] * ROWS)})
    refused(
        says(path, "['m'] must be an npz file") + ".*Python objects", path, {"x": "m"}, lazy=True
    )


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_file_is_named(tmp_path, kind, damage, lazy):
    arrays = {name: np.tile(a, (90,) + (1,) * (a.ndim - 1)) for name, a in ARRAYS.items()}
    path = store(tmp_path, kind, arrays)
    victim = path / "m.npy" if kind == "npy" else path
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no such file at all")
    if damage == "gone":
        victim.unlink()
    with pytest.raises(ValueError, match=says(path) + ".* (must be .*|must hold .*), got "):
        loaded(path, lazy=lazy)


def test_a_file_that_is_cut_after_it_was_opened_is_named(tmp_path):
    data = loaded(path := store(tmp_path, "npz"), lazy=True)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=says(path, "['m'] must be an npz file")):
        data[0]


def test_a_flipped_byte_of_an_npz_is_found_by_its_checksum(tmp_path):
    path = store(tmp_path, "npz")
    content = bytearray(path.read_bytes())
    content[content.find(ARRAYS["q"].tobytes())] ^= 1
    path.write_bytes(content)
    refused(says(path, "['q'] must be an npz file as numpy.savez writes, got BadZipFile"), path)


def test_arguments_that_cannot_be_right(tmp_path):
    path = store(tmp_path, "npz", ARRAYS | {"one": np.float64(1), "none": ARRAYS["m"][:0]})
    refused(says(tmp_path / "no.npz", " must be an npz file") + ".*No such", tmp_path / "no.npz")
    refused(r"files must be folders of .npy or end in .npz, .*set.csv", tmp_path / "set.csv")
    refused("files must be .*GraphFile", tmp_path / "set.xyz")
    refused("keys must be a mapping", path, {})
    refused("dtype must be floating", path, dtype=torch.int64)
    refused(r"every array must be \[rows, ...\], got .*'one'", path, {"x": "one"})
    refused("files must be arrays of one number of rows, got .*: 0}", path, {"x": "none"})
    refused(r"keys must be names of \['x', 'y'\] too", path, {"jacobian": "J"})
    refused(r"keys must be names of \['jacobain'\] too", path, layout={"jacobain": "y x"})
    refused(r"keys must be names of \['F'\] too", path, scale={"F": -1.0})
    for factor in ("-1", float("nan")):
        refused(r"scale\['x'\] must be a finite number, got", path, scale={"x": factor})
    refused(r"layout\['jacobian'\] must be like 'y x'", path, layout={"jacobian": "x y -> y"})
    data = loaded(path)
    with pytest.raises(IndexError, match="rows must be below 7, got 7"):
        data[7]
    with pytest.raises(ValueError, match="rows must be whole numbers"):
        data[torch.ones(7, dtype=torch.bool)]


@pytest.mark.parametrize(("kind", "package"), [("h5", "h5py"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, kind, package):
    path = store(tmp_path, kind)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}: pip install .*\[files\]"):
        loaded(path)


class Fit(L.LightningModule):
    def __init__(self, net, lr):
        super().__init__()
        self.net, self.lr, self.seen = net, lr, []

    def training_step(self, batch, batch_idx):
        self.seen += batch["x"][:, 0].tolist()
        return 0 * self.net(batch["x"]).sum()  # the term alone

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(IN, 4), torch.nn.Tanh(), torch.nn.Linear(4, OUT)
    ).double()


def jacobian_of(net, x):
    return torch.func.vmap(torch.func.jacrev(net))(x)


def step(net, data, lr=0.0, teacher=None, **changes):
    teacher = BatchTeacher("jacobian") if teacher is None else teacher
    exact = {"projection": "basis", "num_projections": None, "normalize": "none"} | changes
    spec = SobolevSpec(terms=[SobolevTerm(weight=1.0, **exact)])
    callback = SobolevCallback(teacher, spec, module="net")
    trainer = L.Trainer(callbacks=[callback], **QUIET | {"max_epochs": 1})
    trainer.fit(Fit(net, lr).double(), DataLoader(data, batch_size=ROWS))
    return float(trainer.callback_metrics["train/sobolev/order_1"])


def test_a_fit_from_a_file_has_the_term_and_gradient_written_by_hand(tmp_path):
    teacher, x = network(0), torch.tensor(ARRAYS["m"])
    target = jacobian_of(teacher, x).detach()
    arrays = {"m": x.numpy(), "q": teacher(x).detach().numpy(), "J": target.numpy()}
    data = loaded(store(tmp_path, "npz", arrays), lazy=True)
    assert step(network(0), data) < 1e-25
    expected, student = network(1), network(1)
    term = (jacobian_of(expected, x) - target).square().mean(0).sum()
    term.backward()
    before = parameters_to_vector(student.parameters()).detach().clone()
    found = step(student, data, 0.1)
    gradient = (before - parameters_to_vector(student.parameters()).detach()) / 0.1
    by_hand = parameters_to_vector(
        [torch.zeros_like(p) if p.grad is None else p.grad for p in expected.parameters()]
    )
    assert_close(found, term.item(), rtol=1e-9, atol=0)
    assert_close(gradient, by_hand, rtol=1e-9, atol=1e-12)


def test_stored_directions_are_labels_of_their_own_shapes(tmp_path):
    teacher, x, v = network(0), torch.tensor(ARRAYS["m"]), RANDOM.normal(size=(ROWS, IN))
    pushed = torch.einsum("bij,bj->bi", jacobian_of(teacher, x), torch.tensor(v)).detach().numpy()
    path = store(tmp_path, "npz", ARRAYS | {"v": v, "Jv": pushed})
    keys, layout = {"x": "m", "y": "q", "v": "v", "Jv": "Jv"}, {"v": "x", "Jv": "y"}
    data = loaded(path, keys, layout=layout)
    pairs = {"teacher": DirectionalTeacher("v", "Jv"), "side": "tangent"}
    assert step(network(0), data, **pairs) < 1e-25
    assert step(network(1), data, **pairs) > 1e-3
    refused(".*'Jv'.* must have the shape", path, keys, layout={"v": "x", "Jv": "x"})


class Stop(L.Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.at:
            trainer.save_checkpoint(trainer.default_root_dir + "/stopped.ckpt")
            trainer.should_stop = True


def test_a_resumed_run_sees_the_rows_that_were_to_come(tmp_path):
    data = loaded(store(tmp_path, "npz"), lazy=True)

    def seen(callbacks=(), ckpt_path=None):
        torch.manual_seed(0)
        quiet = QUIET | {"max_epochs": 1, "default_root_dir": str(tmp_path)}
        trainer = L.Trainer(callbacks=[*callbacks], **quiet)
        module = Fit(network(0), 0.0)
        loader = ResumableLoader(data, ShuffledBatches(ROWS, 2, steps=9, seed=3), trainer)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return module.seen

    whole, first = seen(), seen([Stop(4)])
    assert set(whole) == set(ARRAYS["m"][:, 0])
    assert first + seen(ckpt_path=tmp_path / "stopped.ckpt") == whole


@pytest.mark.parametrize("lazy", [False, True])
def test_links_of_hdf5_are_names_of_what_they_lead_to(tmp_path, lazy):
    h5py = pytest.importorskip("h5py")
    path = store(tmp_path, "h5")
    with h5py.File(path, "a") as file:
        file["same"] = file["J"]
        file["train/soft"] = h5py.SoftLink("/q")
        file["train/above"] = h5py.SoftLink("/")
        file["lost"] = h5py.SoftLink("/nothing")
        file["elsewhere"] = h5py.ExternalLink("none.h5", "/x")
    keys = {"x": "m", "y": "train/soft", "jacobian": "same"}
    batch = loaded(path, keys, lazy=lazy)[:]
    same(batch["y"], ARRAYS["q"])
    same(batch["jacobian"], ARRAYS["J"])
    for name in ("lost", "elsewhere", "train/above"):
        refused(rf".* must hold the key '{name}'", path, KEYS | {"z": name}, lazy=lazy)
