"""Terms at other points than the observed input: student and teacher are asked there alike."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    CompileSettings,
    Linear,
    NetworkTeacher,
    Noise,
    Recombine,
    SobolevCallback,
    SobolevLoss,
    SobolevSpec,
    SobolevTerm,
    TeacherChoice,
)
from tests.kinds import _reference as reference
from tests.kinds._by_hand import (
    EXACT,
    Step,
    X,
    Y,
    assert_is,
    exact,
    fit,
    frobenius,
    mlp,
    numbers,
    refuses,
    share,
    slope,
    target,
    weights,
)
from tests.kinds._measure import TERMS

SHIFTED = X + 0.5


def half_a_unit_on(x, generator):
    del generator
    return x + 0.5


def by_hand(kind, net, x):
    return slope(reference.term(kind, net, target, x), net)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
def test_the_gradient_is_that_of_the_term_at_the_points(kind, engine):
    callback = exact(term={**TERMS[kind], "points": half_a_unit_on}, engine=engine)
    found = share(Step, [(X, Y)], callback)
    assert_is(found, by_hand(kind, mlp(), SHIFTED), 1e-5)


@pytest.mark.parametrize("kind", TERMS)
def test_some_of_the_points(kind):
    asked = []

    def noted(x):
        asked.append(x.detach().clone())
        return target(x)

    term = {**TERMS[kind], "points": half_a_unit_on, "rows": 0.5}
    found = share(Step, [(X, Y)], exact(noted, term=term))
    points = asked[-1]
    assert len(points) == 3
    assert (points[:, None] - SHIFTED).abs().amax(-1).amin(1).max() == 0.0
    assert_is(found, by_hand(kind, mlp(), points), 1e-5)


class Stretched(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.body = mlp(seed=seed)

    def forward(self, x, by):
        return self.body(by[:, None] * x)


class Stretches(Step):
    def __init__(self):
        super().__init__(Stretched())

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0], batch[2]), batch[1])


def test_other_arguments_are_those_of_the_call():
    by = numbers(6, seed=4)
    found = share(Stretches, [(X, Y, by)], exact(Stretched(7), term={"points": half_a_unit_on}))
    net = Stretched()
    theirs = Stretched(7)
    error = reference.jacobian(net, SHIFTED, by) - reference.jacobian(theirs, SHIFTED, by).detach()
    assert_is(found, slope(error.square().flatten(1).sum(1).mean(), net))


class Encoded(Step):
    """The observed input comes out of layers that are trained, too."""

    def __init__(self):
        super().__init__()
        self.encoder = mlp(outputs=3, seed=5)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(self.encoder(batch[0])), batch[1])


def test_points_have_no_graph_to_what_made_the_input():
    found = share(Encoded, [(X, Y)], exact(module="net", term={"points": half_a_unit_on}))
    net, encoder = mlp(), mlp(outputs=3, seed=5)
    value = frobenius(net, target, encoder(X).detach() + 0.5)
    assert_is(found, torch.cat([slope(value, net), torch.zeros_like(weights(encoder))]))


def test_terms_of_the_same_points_share_both_forwards_and_stored_inputs_stay():
    calls = {"teacher": 0, "student": 0}

    def noted(x):
        calls["teacher"] += 1
        return target(x)

    terms = [
        SobolevTerm(**EXACT),
        SobolevTerm(**EXACT, order=0, points=half_a_unit_on, name="values"),
        SobolevTerm(**EXACT, points=half_a_unit_on, name="slopes", weight=0.5),
    ]
    net = mlp()
    net.register_forward_hook(lambda *_: calls.__setitem__("student", calls["student"] + 1))
    loss = SobolevLoss(AnalyticTeacher(noted), terms)
    with loss.observe(net):
        net(X)
    report = loss()
    assert calls == {"teacher": 2, "student": 2}
    clean = mlp()
    expected = frobenius(clean, target, X) + 0.5 * frobenius(clean, target, SHIFTED)
    expected = expected + (clean(SHIFTED) - target(SHIFTED)).square().sum(1).mean()
    assert_close(report.loss, expected)
    assert_is(slope(report.loss, net), slope(expected, clean))


def test_values_at_points_need_no_second_derivative():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * x.cos()

    class Sines(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return Once.apply(self.body(x))

    term = {"order": 0, "points": half_a_unit_on}
    found = share(lambda: Step(Sines()), [(X, Y)], exact(term=term))
    net = Sines()
    assert_is(found, slope((net(SHIFTED) - target(SHIFTED)).square().sum(1).mean(), net))


class Manual(Step):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_manual_optimization():
    found = share(Manual, [(X, Y)], exact(term={"points": half_a_unit_on}))
    assert_is(found, by_hand("vjp", mlp(), SHIFTED))


def random_points(**options):
    points = Recombine(share=Linear(1.0, 0.5, steps=6))
    terms = [
        SobolevTerm(order=0, points=points, name="values"),
        SobolevTerm(points=points, rows=0.5, every_n_steps=2, name="slopes"),
        SobolevTerm(points=Noise(std=0.1), side="tangent", name="near", weight=0.1),
    ]
    return SobolevCallback(
        AnalyticTeacher(target), SobolevSpec(terms=terms), doctor=False, on_mislead="off", **options
    )


def batches(count=6):
    return [(numbers(6, 3, seed=s), numbers(6, 2, seed=50 + s)) for s in range(count)]


def test_a_resumed_run_has_the_same_points(tmp_path):
    options = {"enable_checkpointing": True, "max_epochs": 3}
    save = lambda: ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1)  # noqa: E731
    whole, again = Step(), Step()
    fit(whole, batches(2), random_points(), save(), **options)
    (middle,) = tmp_path.glob("epoch=1-*.ckpt")
    fit(again, batches(2), random_points(), save(), ckpt_path=middle, **options)
    assert_close(weights(again), weights(whole), rtol=0, atol=0)
    other = Step()
    fit(other, batches(2), random_points(seed=1), max_epochs=3)
    assert not torch.equal(weights(other), weights(whole))


def test_points_differ_from_step_to_step_and_seed_to_seed():
    seen = {}
    for seed in (0, 1):
        seen[seed] = []

        def noted(x, seed=seed):
            seen[seed].append(x.detach().clone())
            return target(x)

        term = SobolevTerm(order=0, points=Recombine(share=1.0))
        callback = SobolevCallback(
            AnalyticTeacher(noted), SobolevSpec(terms=[term]), seed=seed, doctor=False
        )
        fit(Step(), [(X, Y)] * 3, callback)
    first, second, third = seen[0]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(first, seen[1][0])
    for column in range(3):  # every number has been seen in its column
        assert torch.isin(first[:, column], X[:, column]).all()


def test_the_doctor_agrees():
    fit(Step(), [(X, Y)], exact(doctor=True, term={"points": half_a_unit_on}))


REFUSED = {
    "stored labels": (lambda: BatchTeacher("2"), "points of term 'order_1' must be None with a Ba"),
    "a choice of them": (
        lambda: TeacherChoice([NetworkTeacher(mlp()), BatchTeacher("2")], index="3"),
        "points of term 'order_1' must be None with a TeacherChoice",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_teachers_that_know_the_data_alone_are_refused(name):
    make, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        SobolevLoss(make(), SobolevTerm(points=half_a_unit_on))


def test_compiled_terms_are_refused():
    settings = CompileSettings(backend="aot_eager")
    callback = exact(term={"points": half_a_unit_on}, compile=settings)
    refuses(Step(), [(X, Y)], callback, "points must be None with compile")


def test_groups_are_refused():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp(outputs=1)

        def forward(self, x, batch):
            return x.new_zeros(2, 1).index_add(0, batch, self.body(x))

    net, loss = Sums(), SobolevLoss(Sums(), SobolevTerm(points=half_a_unit_on))
    with loss.observe(net, groups="batch"):
        net(X, torch.tensor([0, 0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="points must be None with groups="):
        loss()


def test_validation_is_at_the_points_too():
    class Validated(Step):
        def validation_step(self, batch, batch_idx):
            self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    callback = exact(validate=True, term={"points": half_a_unit_on})
    used = fit(Validated(), [(X, Y)], callback, val=[(X, Y)])
    expected = float(frobenius(mlp(), target, SHIFTED).detach())
    found = float(used.callback_metrics["val/sobolev/order_1"])
    assert abs(found - expected) < 1e-6 * expected


def test_the_points_of_half_precision_are_derived_in_single():
    single = [tuple(t.float() for t in (X, Y))]
    make = lambda: Step(mlp().float())  # noqa: E731
    teacher = AnalyticTeacher(lambda x: target(x.double()).float())
    callback = exact(teacher, term={"points": half_a_unit_on})
    found = share(make, single, callback, precision="bf16-mixed").double()
    expected = by_hand("vjp", mlp(), SHIFTED)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("kind", ["vjp", "jvp"])
def test_many_projections_at_once(kind):
    term = {"points": half_a_unit_on, **TERMS[kind]}
    found = share(Step, [(X, Y)], exact(term=term, at_once=2))
    assert_is(found, by_hand(kind, mlp(), SHIFTED), 1e-5)


def test_foresight_is_of_the_data_alone():
    data = [(0.1 * numbers(20, 3, seed=s), numbers(20, 2, seed=9 + s)) for s in range(2)]
    for points, is_said in ((None, True), (half_a_unit_on, False)):
        used = exact(term={"points": points, "weight": 0.01})
        fit(Step(), data, used, max_epochs=3)
        assert (used.foresight is not None) == is_said
