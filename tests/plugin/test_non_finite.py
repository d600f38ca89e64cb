"""Targets and terms that are not numbers: refused by name, or left out and counted."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from tests.plugin._loops import by_hand, refuses, taught
from tests.plugin._students import Learns, ManualRegressor, Regressor, mlp
from tests.plugin._trainers import as_loader, fit, points, weights
from tests.plugin.test_logs import Log

BAD = {"nan": torch.nan, "-inf": -torch.inf}
TERMS = {
    "order_0": SobolevTerm(order=0),
    "order_1": SobolevTerm(num_projections=2),
    "tangent": SobolevTerm(side="tangent", name="tangent"),
    "order_2": SobolevTerm(order=2),
}


class Spoiled(nn.Module):
    """A teacher that is broken at every point whose first coordinate is above a limit."""

    def __init__(self, bad, limit=0.5):
        super().__init__()
        self.body, self.bad, self.limit = mlp(seed=7), bad, limit

    def forward(self, x):
        scale = torch.where(x[:, :1] > self.limit, self.bad, 1.0)
        return self.body(x * scale) * scale


@pytest.mark.parametrize("key", TERMS)
@pytest.mark.parametrize("bad", BAD)
def test_a_teacher_that_answers_with_no_number_is_refused_by_the_terms_name(bad, key):
    text = rf"answer for term '{key}' must be finite, got NaN or Inf in \d of 8 rows; non_finite="
    refuses(Regressor(), text, teacher=Spoiled(BAD[bad]), spec=SobolevSpec(terms=[TERMS[key]]))


EXACT = {"projection": "basis", "num_projections": None}


@pytest.mark.parametrize(("bad", "side"), [("nan", "cotangent"), ("-inf", "tangent")])
def test_skipped_rows_teach_as_if_they_were_not_in_the_batch(bad, side):
    term, log = SobolevTerm(side=side, **EXACT, name="t"), Log()
    teacher = Spoiled(BAD[bad])
    with pytest.warns(UserWarning, match="'t': rows whose target is NaN or Inf are left out") as w:
        found = taught(Regressor(), term, None, log, teacher=teacher, non_finite="skip")
    expected = by_hand(None, term, keep=lambda x: x[x[:, 0] <= 0.5])
    assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert log.of("t_skipped_rows") == [float((x[:, 0] > 0.5).sum()) for x, _ in points()]
    assert sum("left out" in str(one.message) for one in w) == 1


def test_a_batch_of_bad_rows_alone_teaches_nothing_and_says_so():
    found, plain = Regressor(), Regressor()
    used = SobolevCallback(Spoiled(torch.nan, -100.0), non_finite="skip")
    left_out = pytest.warns(UserWarning, match="are left out")
    with left_out, pytest.warns(UserWarning, match="no row of this batch has a known target"):
        fit(found, points(), used)
    fit(plain, points())
    assert_close(weights(found), weights(plain), rtol=0, atol=0)


def spoiled_batch():
    gradient = torch.ones(4, 2, 3).double()
    gradient[0, 0, 1], gradient[1, 1, 2] = torch.inf, torch.nan
    return as_loader([(torch.ones(4, 3).double(), torch.zeros(4, 2).double(), gradient)])


def test_infinity_in_a_table_is_an_error_where_nan_means_unknown():
    spec = SobolevSpec(terms=[SobolevTerm(**EXACT)])
    with pytest.raises(ValueError, match="must be finite, got NaN or Inf in 1 of 4 rows"):
        fit(Learns(), spoiled_batch(), SobolevCallback(BatchTeacher("2"), spec))
    log = Log()
    used = SobolevCallback(BatchTeacher("2"), spec, non_finite="skip")
    with pytest.warns(UserWarning, match="are left out"):
        fit(Learns(), spoiled_batch(), used, log)
    assert log.of("order_1_skipped_rows") == [1.0]
    assert log.of("order_1_unknown_rows") == [0.0]


# Terms that become infinite


class Diverges(Regressor):
    def on_train_batch_end(self, *args):
        self.net[0].weight.data.fill_(torch.nan)


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_student_that_diverged_is_told_from_a_broken_derivative(engine):
    text = r"term 'order_1' must be finite, got nan at step 1: the student's own output is not"
    with pytest.raises(FloatingPointError, match=text):
        fit(Diverges(), points(), SobolevCallback(mlp(seed=7), engine=engine))


class LosesItself(Regressor):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if batch_idx == 1 else loss


def test_a_loss_of_the_step_itself_is_told_from_a_term_one_step_later():
    text = r"must be finite, got nan at step 2: the student's own output is not finite"
    with pytest.raises(FloatingPointError, match=text):
        fit(LosesItself(), points(), SobolevCallback(mlp(seed=7)))


class Rooted(nn.Module):
    """A distance: its derivative is not defined where it vanishes."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x) + (0.0 * x).square().sum(-1, keepdim=True).sqrt()


def test_a_derivative_that_is_not_finite_is_named():
    text = r"term 'b' must be finite, got nan at step 0: the student's output is finite and its"
    terms = [SobolevTerm(order=0, name="a"), SobolevTerm(name="b"), SobolevTerm(order=2)]
    spec = SobolevSpec(terms=terms)
    refuses(Regressor(Rooted()), text, error=FloatingPointError, spec=spec)


def test_under_manual_optimization_too():
    student = ManualRegressor(Rooted())
    refuses(student, "term 'order_1' must be finite", error=FloatingPointError)


def test_a_target_too_large_to_be_squared_does_not_end_the_term_in_silence():
    """An infinite scale would divide the term to zero from then on."""
    huge = AnalyticTeacher(lambda x: 1e200 * mlp(seed=7)(x))
    text = "target of term 'order_1' must be small enough to be squared in torch.float64, got a sum"
    refuses(Regressor(), text, teacher=huge)


def test_a_gradient_scaler_handles_overflow_itself():
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    student = Regressor(Rooted().float())
    before = weights(student)
    data = as_loader([tuple(part.float() for part in batch) for batch in points()])
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    used = SobolevCallback(mlp(seed=7).float(), doctor=False)
    with pytest.warns(UserWarning, match="must be finite, got nan; the gradient scaler skips"):
        fit(student, data, used, precision=None, plugins=[plugin])
    assert_close(weights(student), before, rtol=0, atol=0)
    assert scaler.get_scale() < 4.0
