"""Frames come back as the numbers that stand in the file, joined into flat batches."""

import re
import sys

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, Subset

from lightning_sobolev import (
    BatchTeacher,
    DirectionalTeacher,
    GraphFile,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    graph_collate,
)
from tests.plugin._trainers import QUIET

pytest.importorskip("ase")

# Written by hand, so that nothing of ASE's writer is taken for granted.
TEXT = """3
Lattice="3 0 0 0 4 0 1 0 5" Properties=species:S:1:pos:R:3:forces:R:3:vs:R:3 \
energy=-1.5 stress="1 6 5 6 2 4 5 4 3" REF_energy=-2.5 dipole="1 2 3" name=water pbc="T T F"
O 0.1 0.2 0.3 1 2 3 0 0 1
H 1.1 0.2 0.3 4 5 6 0 1 0
H 0.1 1.2 0.3 7 8 9 1 0 0
1
Properties=species:S:1:pos:R:3:forces:R:3:vs:R:3 energy=-0.5 stress="1 0 0 0 1 0 0 0 1" \
REF_energy=-3.5 dipole="4 5 6" pbc="F F F"
He 5 6 7 nan nan nan 0 0 0
2
Properties=species:S:1:pos:R:3:forces:R:3:vs:R:3 energy=nan stress="2 0 0 0 2 0 0 0 2" \
REF_energy=-4.5 dipole="7 8 9" pbc="F F F"
N 0 0 0 -1 -2 -3 2 0 0
N 0 0 1 1 2 3 0 2 0
"""
LABELS = {"energy": "energy", "forces": "forces", "stress": "stress", "vs": "vs"}
NAN = float("nan")


def written(folder, text=TEXT):
    path = folder / "a@b.xyz"
    path.write_text(text)
    return path


def graphs_of(path, keys=LABELS, **changes):
    return GraphFile(path, keys, **{"dtype": torch.float64, **changes})


def same(found, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert_close(found.double(), expected, rtol=0, atol=0, equal_nan=True)


def test_graphs_of_unequal_size_are_one_flat_batch(tmp_path):
    loader = DataLoader(graphs_of(written(tmp_path)), batch_size=3, collate_fn=graph_collate)
    (batch,) = loader
    known = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    same(batch["batch"], [0, 0, 0, 1, 2, 2])
    same(batch["numbers"], [8, 1, 1, 2, 7, 7])
    places = [[0.1, 0.2, 0.3], [1.1, 0.2, 0.3], [0.1, 1.2, 0.3]]
    same(batch["positions"], [*places, [5, 6, 7], [0, 0, 0], [0, 0, 1]])
    same(batch["forces"], [*known, [NAN] * 3, [-1, -2, -3], [1, 2, 3]])
    same(batch["vs"], [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [2, 0, 0], [0, 2, 0]])
    same(batch["energy"], [-1.5, -0.5, NAN])
    stress = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
    same(batch["stress"], [stress, np.eye(3).tolist(), (2 * np.eye(3)).tolist()])
    cell = [[3, 0, 0], [0, 4, 0], [1, 0, 5]]
    same(batch["cell"], [cell, [[0] * 3] * 3, [[0] * 3] * 3])
    same(batch["pbc"], [[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert batch["numbers"].dtype == batch["batch"].dtype == torch.int64


def test_workers_shuffles_and_subsets_give_the_graphs_that_they_name(tmp_path):
    graphs = graphs_of(written(tmp_path))
    (turned,) = DataLoader(Subset(graphs, [2, 0]), 2, num_workers=1, collate_fn=graph_collate)
    same(turned["numbers"], [7, 7, 8, 1, 1])
    same(turned["batch"], [0, 0, 1, 1, 1])
    same(turned["energy"], [NAN, -1.5])
    order = torch.randperm(3, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = DataLoader(graphs, 3, sampler=order, collate_fn=graph_collate, num_workers=2)
    same(next(iter(shuffled))["cell"][:, 0, 0], [[3, 0, 0][n] for n in order])


def test_energies_and_forces_are_taken_where_nothing_is_said(tmp_path):
    graphs = GraphFile(written(tmp_path))
    assert len(graphs) == 3
    assert set(graphs[0]) == {"positions", "numbers", "cell", "pbc", "energy", "forces"}
    assert graphs[0]["energy"].dtype == graphs[0]["positions"].dtype == torch.float32
    same(graphs[-1]["forces"], [[-1, -2, -3], [1, 2, 3]])


def test_labels_of_other_names_are_found_where_the_file_has_them(tmp_path):
    batch = graph_collate(list(graphs_of(written(tmp_path), {"e": "REF_energy", "d": "dipole"})))
    same(batch["e"], [-2.5, -3.5, -4.5])
    same(batch["d"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_a_scale_turns_the_sign_of_a_label(tmp_path):
    graph = graphs_of(written(tmp_path), {"hv": "vs"}, scale={"hv": -2.0})[0]
    same(graph["hv"], [[0, 0, -2], [0, -2, 0], [-2, 0, 0]])


def test_six_numbers_are_the_symmetric_stress(tmp_path):
    path = written(tmp_path, re.sub('dipole="[^"]*"', 'virials="1 2 3 4 5 6"', TEXT))
    same(graphs_of(path, {"stress": "virials"})[0]["stress"], [[[1, 6, 5], [6, 2, 4], [5, 4, 3]]])


def test_nine_numbers_are_the_stress_if_they_are_symmetric(tmp_path):
    text = re.sub('dipole="[^"]*"', 'REF_stress="1 6 5 6 2 4 5 4 3"', TEXT)
    graph = graphs_of(written(tmp_path, text), {"stress": "REF_stress"})[0]
    same(graph["stress"], [[[1, 6, 5], [6, 2, 4], [5, 4, 3]]])
    turned = written(tmp_path, text.replace('REF_stress="1 6', 'REF_stress="1 7'))
    with pytest.raises(ValueError, match=r"of shape \[graphs, 3, 3\], got '\[graphs, 9\]'"):
        graphs_of(turned, {"stress": "REF_stress"})


@pytest.mark.parametrize(
    ("change", "keys", "text"),
    [
        (("", ""), {"e": "ref_energy"}, "frame 0 of {} must hold the key 'ref_energy', got ['REF_"),
        (("energy=-0.5", ""), LABELS, "frame 1 of {} must hold the key 'energy', got ["),
        (("", ""), {"e": "name"}, "'name' in frame 0 of {} must be real numbers, got ['water']"),
        (
            ("", ""),
            {"stress": "dipole"},
            "'dipole' in frame 0 of {} must be of shape [graphs, 3, 3], got '[graphs, 3]'",
        ),
        (
            ("", ""),
            {"forces": "dipole"},
            "'dipole' in frame 0 of {} must be of shape [nodes, 3], got '[graphs, 3]'",
        ),
        (
            ('"4 5 6"', '"4 5"'),
            {"d": "dipole"},
            "'dipole' in frame 1 of {} must be of shape [graphs, 3], got '[graphs, 2]'",
        ),
        (("-0.5", "inf"), LABELS, "'energy' in frame 1 of {} must be without Inf as torch.float64"),
        (("5 6 7", "5 nan 7"), LABELS, "positions in frame 1 of {} must be finite, got [[5"),
        (("H 0.1 1.2 0.3 7 8 9 1 0 0\n", ""), LABELS, "{} must be frames in the extended xyz"),
        (("7 8 9 1 0 0", "7 8"), LABELS, "{} must be frames in the extended xyz format, got "),
        ((TEXT, "no frames"), LABELS, "{} must be frames in the extended xyz format, got XYZError"),
        ((TEXT[-40:], ""), LABELS, "{} must be frames in the extended xyz format, got XYZError"),
        (("3 0 2 0\n", "3 0 2"), LABELS, "{} must be frames in the extended xyz format, got "),
        (("3 0 2 0\n", "3 0 2 0"), LABELS, "{} must be whole, with a newline at its end, got '"),
        ((TEXT, ""), LABELS, "{} must be at least one frame, got 'none'"),
    ],
)
def test_what_cannot_be_right_names_file_place_and_what_came(tmp_path, change, keys, text):
    path = written(tmp_path, TEXT.replace(*change, 1) if change[0] else TEXT)
    with pytest.raises(ValueError, match=f"^{re.escape(text.format(path))}"):
        graphs_of(path, keys)


def test_arguments_that_cannot_be_right(tmp_path):
    path = written(tmp_path)
    with pytest.raises(ValueError, match="dtype must be floating"):
        graphs_of(path, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"keys must be no names of the geometry.*\['batch'\]"):
        graphs_of(path, {"batch": "vs"})
    with pytest.raises(ValueError, match=r"scale must be factors of \['energy', .* got {'hv': -1"):
        graphs_of(path, scale={"hv": -1.0})
    with pytest.raises(ValueError, match=r"scale\['vs'\] must be a finite number, got '-1'"):
        graphs_of(path, scale={"vs": "-1"})
    with pytest.raises(ValueError, match=r"none.xyz must be frames .* FileNotFoundError"):
        GraphFile(path.with_name("none.xyz"))
    with pytest.raises(ValueError, match="graphs must be at least one"):
        graph_collate([])
    bare = {"positions": torch.zeros(1, 3)}
    more = bare | {"charges": torch.zeros(1)}
    for graphs in ([bare, more], [more, bare]):
        with pytest.raises(ValueError, match="graphs must be dicts with the same keys"):
            graph_collate(graphs)


def test_without_ase_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ase.io", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs ase.io: pip install .*\[files\]"):
        graphs_of(written(tmp_path))


class Springs(torch.nn.Module):
    """Forces of atoms of one graph on one another; energy k r^2 / 2 + c r^4 / 4 of each pair."""

    def __init__(self, k, c):
        super().__init__()
        self.k, self.c = (torch.nn.Parameter(torch.tensor(v).double()) for v in (k, c))

    def forward(self, positions, batch):
        apart = positions[:, None] - positions[None]
        same = (batch[:, None] == batch[None]).to(positions)[..., None]
        r2 = apart.square().sum(-1, keepdim=True)
        return -(same * (self.k + self.c * r2) * apart).sum(1)


class Forces(L.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return 0 * self.net(batch["positions"], batch["batch"]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def term_of(net, graphs, teacher, name, **changes):
    spec = SobolevSpec(terms=[SobolevTerm(normalize="none", weight=1.0, **changes)])
    callback = SobolevCallback(teacher, spec, module="net", wrt="positions")
    trainer = L.Trainer(callbacks=[callback], **QUIET | {"max_epochs": 1})
    trainer.fit(Forces(net), DataLoader(graphs, batch_size=3, collate_fn=graph_collate))
    return float(trainer.callback_metrics[f"train/sobolev/{name}"])


@pytest.fixture
def springs(tmp_path):
    """Three graphs with the forces of known springs, a direction and the force's derivative."""
    random, text, teacher = np.random.default_rng(2), "", Springs(1.0, 0.3)
    for size in (3, 2, 4):
        place, direction = (torch.tensor(random.normal(size=(size, 3))) for _ in range(2))
        graph = torch.zeros(size)
        forces = lambda p, g=graph: teacher(p, g)  # noqa: E731
        hessian = torch.autograd.functional.jacobian(forces, place)
        column = torch.einsum("iajb,jb->ia", hessian, direction)
        text += f"{size}\nProperties=species:S:1:pos:R:3:forces:R:3:vs:R:3:hessian_col:R:3\n"
        table = torch.cat([place, forces(place).detach(), direction, column], 1)
        for row in table.tolist():
            text += f"H {' '.join(map(repr, row))}\n"
    return graphs_of(written(tmp_path, text), {n: n for n in ("forces", "vs", "hessian_col")})


@pytest.mark.filterwarnings("ignore:.*rows")  # atoms of one graph do depend on one another
def test_a_hessian_column_of_each_graph_teaches_a_flat_batch(springs):
    teacher = DirectionalTeacher("vs", "hessian_col")
    assert term_of(Springs(1.0, 0.3), springs, teacher, "order_1", side="tangent") < 1e-25
    found = term_of(Springs(1.1, 0.3), springs, teacher, "order_1", side="tangent")
    batch = graph_collate(list(springs))
    place, graph = batch["positions"], batch["batch"]
    dense = torch.autograd.functional.jacobian(lambda p: Springs(1.1, 0.3)(p, graph), place)
    pushed = torch.einsum("iajb,jb->ia", dense, batch["vs"])
    assert_close(found, float((pushed - batch["hessian_col"]).square().mean(0).sum()))


@pytest.mark.filterwarnings("ignore:.*rows")
def test_forces_of_a_flat_batch_are_values_for_the_batchs_teacher(springs):
    teacher = BatchTeacher(value="forces")
    assert term_of(Springs(1.0, 0.3), springs, teacher, "order_0", order=0) < 1e-25
    assert term_of(Springs(1.1, 0.3), springs, teacher, "order_0", order=0) > 1e-3
