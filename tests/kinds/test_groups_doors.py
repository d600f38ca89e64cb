"""Groups by other doors: found without a name, refused, checked, on several processes."""

import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    AdjointTeacher,
    BatchTeacher,
    DirectionalTeacher,
    MixedTeacher,
    SobolevCallback,
    SobolevLoss,
    SobolevSpec,
    SobolevTerm,
)
from lightning_sobolev.doctor.differences import CoupledError
from tests.kinds import _graphs as by_hand
from tests.kinds._by_hand import (
    EXACT,
    assert_is,
    descend,
    fit,
    numbers,
    refuses,
    said,
    share,
    slope,
    weights,
)
from tests.kinds._graphs import Fit, Scalar, graphs, index_of, taught
from tests.plugin._processes import train_all, trained_by_two

STORED = BatchTeacher(jacobian="grad")


def student():
    return Fit(Scalar(seed=3))


def expected(batch, **how):
    net = Scalar(seed=3)
    return slope(by_hand.term(net, batch, **how), net)


# Found without being named


def test_an_argument_batch_beside_the_input_is_found():
    batch = graphs()
    assert_is(share(student, [batch], taught(STORED, groups=None)), expected(batch))


class OfObject(Fit):
    """The student is given one object with attributes."""

    def __init__(self):
        super().__init__()
        inner = Scalar(seed=3)

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, data):
                return self.inner(data.pos, data.batch)

        self.net = Model()

    def training_step(self, batch, batch_idx):
        data = SimpleNamespace(pos=batch["pos"], batch=batch["batch"])
        return mse_loss(self.net(data), batch["y"])


@pytest.mark.parametrize("groups", [None, "data.batch", "batch"])
def test_the_input_and_its_graphs_may_be_attributes_of_an_object(groups):
    batch = graphs()
    found = share(OfObject, [batch], taught(STORED, wrt="data.pos", groups=groups))
    assert_is(found, expected(batch))


def test_the_index_may_stand_in_the_batch_alone():
    batch = graphs()

    class Padded(Fit):
        def training_step(self, batch, batch_idx):
            return mse_loss(self.net(batch["pos"], batch["batch"].clone()), batch["y"])

    batch["owner"] = batch["batch"]
    make = lambda: Padded(Scalar(seed=3))  # noqa: E731
    assert_is(share(make, [batch], taught(STORED, groups="owner")), expected(batch))


# Refused


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (numbers(10), "groups='owner' must be a vector of integers"),
        (index_of()[:-1], "groups='owner' must be a vector of integers"),
        (index_of() + 1, "groups must number the 4 rows of the output from zero"),
        (index_of() - 1, "groups must number the 4 rows of the output from zero"),
    ],
)
def test_an_index_that_is_none_is_refused(index, text):
    batch = {**graphs(), "owner": index}
    refuses(student(), [batch], taught(STORED, groups="owner"), text)


def test_a_name_that_nothing_has_is_refused():
    refuses(student(), [graphs()], taught(STORED, groups="molecule"), "groups='molecule' must be")


def test_graphs_without_an_index_are_refused_with_advice():
    class Positional(Scalar):
        def forward(self, pos, owner):
            return super().forward(pos, owner)

    module = Fit(Positional())
    refuses(module, [graphs()], taught(STORED, groups=None), "groups=")


def test_labels_with_a_row_for_each_graph_are_refused():
    batch = {**graphs(), "grad": numbers(4, 3)}
    refuses(student(), [batch], taught(STORED), "with 10 rows, got .*4")


@pytest.mark.parametrize("scale", [0.0, float("nan"), [1.0, 2.0], [1.0, None], "1.0", None, True])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be"):
        BatchTeacher(forces="forces", scale=scale)


@pytest.mark.parametrize("scale", [0.0, float("inf"), "1.0", None, True, [1.0]])
@pytest.mark.parametrize("make", [DirectionalTeacher, AdjointTeacher, MixedTeacher])
def test_a_scale_that_is_none_is_refused_by_all(make, scale):
    paths = ["mixed"] if make is MixedTeacher else ["directions", "derivatives"]
    with pytest.raises(ValueError, match="scale must be a finite number other than zero, got"):
        make(*paths, scale=scale)


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"scale must be 1\.0 without jacobian= or forces="):
        BatchTeacher(hessian="hessian", scale=-1.0)


@pytest.mark.parametrize("name", ["wrt", "groups", "output"])
@pytest.mark.parametrize("path", [1.5, True, [["batch"]], "a..b"])
def test_a_name_that_is_no_key_path_is_refused(name, path):
    with pytest.raises(ValueError, match=f"{name} must look like"):
        SobolevCallback(STORED, **{name: path})


@pytest.mark.parametrize("name", ["jacobian", "forces", "value", "hessian"])
def test_labels_whose_name_is_no_key_path_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must look like"):
        BatchTeacher(**{name: 1.5})


def test_both_signs_at_once_are_refused():
    with pytest.raises(ValueError, match="forces must be None beside jacobian="):
        BatchTeacher(jacobian="grad", forces="forces")


# The doctor


def test_the_doctor_agrees_with_graphs_and_says_nothing():
    lines = said(lambda: fit(student(), [graphs()] * 2, taught(STORED, doctor=True)))
    assert not [line for line in lines if "groups" in line or "not checked" in line], lines


class PerNode(Scalar):
    """Energies of nodes that depend on their neighbors."""

    def forward(self, pos, batch):
        return self.nodes(pos, batch)[:, 0]


class FitPerNode(Fit):
    def training_step(self, batch, batch_idx):
        energy = self.net(batch["pos"], batch["batch"])
        return mse_loss(torch.zeros(4).double().index_add(0, batch["batch"], energy), batch["y"])


def test_forces_of_values_for_each_node_without_groups_are_refused():
    module = FitPerNode(PerNode(seed=3))
    callback = taught(STORED, groups=None, doctor=True)
    refuses(module, [graphs()], callback, "groups=", error=CoupledError)


class Forces(torch.nn.Module):
    """Minus the gradient of energies, of all graphs at once."""

    def __init__(self, seed):
        super().__init__()
        self.energy = Scalar(seed=seed)

    def forward(self, pos, batch):
        with torch.enable_grad():
            pos = pos if pos.requires_grad else pos.detach().requires_grad_()
            energy = self.energy(pos, batch).sum()
            return -torch.autograd.grad(energy, pos, create_graph=True)[0]


class FitForces(Fit):
    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(batch["pos"], batch["batch"]).sum()


def test_hessian_columns_of_a_student_that_returns_forces_are_no_coupled_rows():
    batch, net = graphs(), Scalar(seed=3)
    batch |= {"vs": numbers(10, 3, seed=4), "hessian_col": numbers(10, 3, seed=5)}
    callback = SobolevCallback(DirectionalTeacher("vs", "hessian_col"), module="net", wrt="pos")
    lines = said(lambda: fit(FitForces(Forces(3)), [batch], callback))
    assert not any("coupled" in line for line in lines), lines
    spec = SobolevSpec(terms=[SobolevTerm(side="tangent", normalize="none")])
    callback = SobolevCallback(DirectionalTeacher("vs", "hessian_col"), spec, module="net")
    found = share(lambda: FitForces(Forces(3)), [batch], callback)
    error = 0.0
    for pos, v, column in by_hand.each(batch, "vs", "hessian_col"):
        pushed = torch.einsum("iajb,jb->ia", by_hand.derivative(net, pos, 2), v)
        error = error + (-pushed - column).square().sum()
    assert_is(found, slope(error / 10, net))


def test_the_doctors_of_data_say_nothing_of_graphs():
    """The way to a neighbor is one of all nodes, also where every graph has one."""

    class FitRows(Fit):
        def training_step(self, batch, batch_idx):
            return mse_loss(self.net(batch["pos"], batch["batch"]), batch["y"])

    batch = graphs((1,) * 60)
    batch["y"], batch["grad"] = batch["pos"].square().sum(1), -2.0 * batch["pos"]
    for groups, is_said in ((None, True), ("batch", False)):
        used = taught(STORED, groups=groups, term={"weight": 1e-3})
        lines = said(lambda used=used: fit(FitRows(Scalar(seed=3)), [batch] * 3, used))
        assert (used.label_report is not None) == is_said
        assert (used.foresight is not None) == is_said
        assert any("wrong sign" in line for line in lines) == is_said, lines


# Other loops and precisions


def test_a_plain_loop():
    batch, net = graphs(), Scalar(seed=3)
    loss = SobolevLoss(STORED, SobolevSpec(terms=[SobolevTerm(**EXACT)]))
    with loss.observe(net, groups="batch"):
        net(batch["pos"], batch["batch"])
    assert_is(slope(loss(batch=batch).loss, net), expected(batch))


class Holds(Scalar):
    """Has the index from elsewhere."""

    def forward(self, pos):
        return super().forward(pos, index_of())


def test_a_plain_loop_whose_index_stands_in_the_batch_alone():
    batch, net = graphs(), Holds(seed=3)
    loss = SobolevLoss(STORED, SobolevSpec(terms=[SobolevTerm(**EXACT)]))
    with loss.observe(net, groups="batch", batch=batch):
        net(batch["pos"])
    assert_is(slope(loss(batch=batch).loss, net), expected(batch))


def test_a_plain_loop_is_told_how_to_hand_the_batch_over():
    loss = SobolevLoss(STORED, SobolevSpec(terms=[SobolevTerm(**EXACT)]))
    text = r"groups='batch' must be .*batch=batch.*\(groups='batch': the observed module has no"
    with pytest.raises(ValueError, match=text), loss.observe(net := Holds(seed=3), groups="batch"):
        net(graphs()["pos"])


def test_fabric():
    batch, net = graphs(), Scalar(seed=3)
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup(net)
    loss = SobolevLoss(STORED, SobolevSpec(terms=[SobolevTerm(**EXACT)]))
    with loss.observe(model, groups="batch"):
        model(batch["pos"], batch["batch"])
    fabric.backward(loss(batch=batch).loss)
    given = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    found = torch.cat([grad.flatten() for grad in given])
    assert_is(found, expected(batch))


class Manual(Fit):
    def __init__(self):
        super().__init__(Scalar(seed=3))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_manual_optimization():
    batch = graphs()
    assert_is(share(Manual, [batch], taught(STORED)), expected(batch))


def test_bfloat16():
    batch = {k: v.float() if v.is_floating_point() else v for k, v in graphs().items()}
    make = lambda: student().float()  # noqa: E731
    found = share(make, [batch], taught(STORED), precision="bf16-mixed").double()
    reference = expected(graphs())
    # The step itself is bfloat16; the derivative is not.
    assert (found - reference).norm() < 1e-3 * reference.norm()


class Validated(Fit):
    def validation_step(self, batch, batch_idx):
        self.net(batch["pos"], batch["batch"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_validation_logs_the_term(side):
    batch, net = graphs((2, 5, 1)), Scalar(seed=3)
    callback = taught(STORED, validate=True, term={"side": side})
    used = fit(Validated(net), [graphs()], callback, val=[batch])
    logged = [float(v) for k, v in used.callback_metrics.items() if k.startswith("val/sobolev/")]
    expected = float(by_hand.term(net, batch).detach())
    assert any(abs(value - expected) < 1e-6 * expected for value in logged), logged


# Two processes with other numbers of graphs, nodes and unknown nodes are one


PARTS = {"graphs": [(0, 1, 2), (3,)], "nodes": [(0, 2), (1, 3)]}
TERMS = [
    (split, average, normalize, unknown)
    for split in PARTS
    for average in ("node", "graph")
    for normalize in ("none", "target")
    for unknown in ((), (0, 8, 9))
]


class Shared(Fit):
    """Each process takes some of the graphs."""

    def __init__(self, parts):
        super().__init__(Scalar(seed=3))
        self.parts = parts

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.world_size == 1:
            return batch
        graphs = torch.tensor(self.parts[self.global_rank])
        nodes = torch.isin(batch["batch"], graphs)
        cut = {name: batch[name][nodes] for name in ("pos", "grad")}
        return {**cut, "batch": torch.searchsorted(graphs, batch["batch"][nodes])}

    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(batch["pos"], batch["batch"]).sum()


def trained(number, **flags):
    split, average, normalize, unknown = TERMS[number]
    module = Shared(PARTS[split])
    batches = [graphs(seed=seed) for seed in (1, 2)]
    for batch in batches:
        batch["grad"][list(unknown)] = torch.nan
    term = {"average": average, "normalize": normalize, "weight": 0.1}
    fit(module, batches, taught(STORED, term=term), **flags)
    return weights(module)


def by_hand_of_one(number):
    """Weights behind two steps on the known nodes of whole batches, by dense derivatives."""
    _, average, normalize, unknown = TERMS[number]
    net, sizes = Scalar(seed=3), []
    for seed in (1, 2):
        batch = graphs(seed=seed)
        count = torch.bincount(batch["batch"])[batch["batch"]].double()
        weight = torch.ones(10).double() if average == "node" else 1.0 / count
        weight[list(unknown)] = 0.0
        ours = torch.cat([by_hand.derivative(net, pos) for (pos,) in by_hand.each(batch)])
        sizes.append((weight * batch["grad"].square().sum(1)).sum() / weight.sum())
        error = (weight * (ours - batch["grad"]).square().sum(1)).sum() / weight.sum()
        scale = torch.stack(sizes).mean() if normalize == "target" else 1.0
        descend(net, lambda error=error, scale=scale: 0.1 * error / scale)
    return weights(net)


@pytest.mark.parametrize("number", range(len(TERMS)))
def test_one_process_trains_as_by_hand(number):
    assert_close(trained(number), by_hand_of_one(number), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for number, found in enumerate(trained_by_two(__spec__.name, tmp_path / "weights.pt")):
        text = f"{TERMS[number]}: {{}}".format
        assert_close(found, by_hand_of_one(number), rtol=1e-10, atol=1e-12, msg=text)


if __name__ == "__main__":
    train_all(sys.argv[1], trained, len(TERMS))
