"""How many projections are taken at once: as told, or measured once and kept."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev import SobolevCallback, SobolevLoss, SobolevSpec, SobolevTerm
from lightning_sobolev.loss import at_once
from tests.functional.test_many_projections import Cube

EXACT = SobolevTerm(projection="basis", num_projections=None)
EXACT_SPEC = SobolevSpec(terms=[EXACT])


class Clock:
    """Stands while nobody sets it forward."""

    now = 0.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(at_once, "time", SimpleNamespace(perf_counter=lambda: Clock.now))


class Student(nn.Module):
    """Counts its backward passes, of which one with several projections may take longer."""

    def __init__(self, outputs=10, seconds=(0.0, 0.0), layer=None):
        super().__init__()
        torch.manual_seed(3)
        self.seconds, self.passes, self.layer = seconds, [], layer
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, outputs)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        y = self.last(y if self.layer is None else self.layer(y))
        if y.requires_grad:
            y.register_hook(self._passed)
        return y

    def _passed(self, grad):
        is_many = torch._C._functorch.is_batchedtensor(grad)
        self.passes.append(is_many)
        Clock.now += self.seconds[is_many]


def teacher(outputs=10):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def evaluated(student, loss_fn):
    """Evaluate once: the loss, its gradients, and whether each backward pass had several rows."""
    student.double().zero_grad()
    x = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)
    with loss_fn.observe(student):
        student(x)
    student.passes.clear()
    report = loss_fn()
    passes = list(student.passes)
    report.loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
    return report.loss.detach(), gradients, passes


SLOW_ALONE, SLOW_TOGETHER = (2.0, 0.0), (0.0, 2.0)


@pytest.mark.parametrize(
    ("seconds", "chosen", "passes"),
    [(SLOW_ALONE, at_once.AT_ONCE, [True]), (SLOW_TOGETHER, 1, [False] * 10)],
)
def test_the_faster_way_is_measured_once_and_kept(seconds, chosen, passes):
    student, loss_fn = Student(seconds=seconds), SobolevLoss(teacher(), EXACT)
    loss, gradients, first = evaluated(student, loss_fn)
    assert len(first) > 10  # it was measured
    assert loss_fn.at_once.chosen["order_1"] == chosen
    again, same, later = evaluated(student, loss_fn)
    assert later == passes
    alone, expected, _ = evaluated(Student(), SobolevLoss(teacher(), EXACT, at_once=1))
    assert_close(loss, alone)
    assert_close(gradients, expected)
    assert_close(same, expected)
    assert_close(again, alone)


def test_a_resumed_loss_takes_what_was_chosen_before():
    loss_fn = SobolevLoss(teacher(), EXACT)
    evaluated(Student(seconds=SLOW_ALONE), loss_fn)
    state = loss_fn.state_dict()
    assert state["at_once"]["order_1"] == at_once.AT_ONCE
    resumed = SobolevLoss(teacher(), EXACT)
    resumed.load_state_dict(state)
    student = Student(seconds=SLOW_TOGETHER)
    assert len(evaluated(student, resumed)[2]) == 2  # the first one looks at the graph, too
    assert evaluated(student, resumed)[2] == [True]
    resumed.reset()  # another fit looks again
    evaluated(Student(seconds=SLOW_TOGETHER), resumed)
    assert resumed.at_once.chosen["order_1"] == 1


@pytest.mark.parametrize(("wish", "passes"), [(1, 10), (3, 4), (10, 1), (99, 1)])
def test_a_number_that_is_told_is_taken_without_a_measurement(wish, passes):
    loss_fn = SobolevLoss(teacher(), EXACT, at_once=wish)
    evaluated(Student(), loss_fn)  # the first one looks at the graph, too
    _, gradients, counted = evaluated(Student(), loss_fn)
    assert len(counted) == passes
    assert loss_fn.at_once.chosen == {}
    _, expected, _ = evaluated(Student(), SobolevLoss(teacher(), EXACT, at_once=1))
    assert_close(gradients, expected)


@pytest.mark.parametrize("outputs", [1, 8])
def test_of_few_projections_nothing_is_measured(outputs):
    student, loss_fn = Student(outputs, seconds=SLOW_ALONE), SobolevLoss(teacher(outputs), EXACT)
    evaluated(student, loss_fn)  # the first one looks at the graph, too
    _, _, counted = evaluated(student, loss_fn)
    assert counted == [False] * outputs
    assert loss_fn.at_once.chosen == {}


def test_a_layer_that_takes_one_alone_gets_one_and_it_is_said():
    student, loss_fn = Student(layer=Cube.apply), SobolevLoss(teacher(), EXACT)
    loss, _, _ = evaluated(student, loss_fn)
    assert loss_fn.at_once.chosen["order_1"] == 1
    (news,) = [text for text in loss_fn.at_once.news if text.startswith("order_1 ")]
    assert "one after the other; 10 at once failed" in news
    assert_close(evaluated(student, loss_fn)[0], loss)


def test_a_number_that_a_layer_does_not_take_is_refused():
    loss_fn = SobolevLoss(teacher(), EXACT, at_once=4)
    with pytest.raises(ValueError, match=r"at_once must be 1 or None .* of order_1 .*got 4"):
        evaluated(Student(layer=Cube.apply), loss_fn)


def doubled(y):
    """Return y, whose backward pass is another one for several projections at once."""
    y = y.clone()
    y.register_hook(lambda grad: (1.0 + torch._C._functorch.is_batchedtensor(grad)) * grad)
    return y


def test_other_numbers_are_not_taken():
    loss_fn = SobolevLoss(teacher(), EXACT)
    evaluated(Student(seconds=SLOW_ALONE, layer=doubled), loss_fn)
    assert loss_fn.at_once.chosen["order_1"] == 1
    assert any("other numbers" in text for text in loss_fn.at_once.news)


@pytest.mark.parametrize("problem", [0.0, 1.0])
def test_processes_choose_by_what_all_of_them_measured(problem):
    """Another process was slower together, or failed."""
    loss_fn = SobolevLoss(teacher(), EXACT)
    other = torch.tensor([1.0, 50.0 * (1.0 - problem), problem])
    loss_fn._sum = lambda total: total + other if len(total) == 3 else total
    student = Student(seconds=SLOW_ALONE)
    evaluated(student, loss_fn)
    assert loss_fn.at_once.chosen["order_1"] == 1
    assert evaluated(student, loss_fn)[2] == [False] * 10


@pytest.mark.parametrize("wish", [0, -1, 2.5])
def test_a_number_that_is_none_is_refused(wish):
    with pytest.raises(ValueError, match="at_once must be at least 1 or None"):
        SobolevLoss(teacher(), EXACT, at_once=wish)


def test_hessians_take_several_at_once():
    term = SobolevTerm(order=2, projection="basis", num_projections=None)
    _, gradients, _ = evaluated(Student(4), SobolevLoss(teacher(4), term, at_once=5))
    _, expected, _ = evaluated(Student(4), SobolevLoss(teacher(4), term, at_once=1))
    assert_close(gradients, expected)


def test_pairs_on_the_tape_are_taken_one_after_the_other_whatever_is_told():
    term = SobolevTerm(order=2, num_projections=9)
    _, gradients, _ = evaluated(Student(4), SobolevLoss(teacher(4), term, at_once=3))
    _, expected, _ = evaluated(Student(4), SobolevLoss(teacher(4), term))
    assert_close(gradients, expected)


class Fitted(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Student(seconds=SLOW_ALONE)

    def training_step(self, batch):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(callback, steps=2, **options):
    trainer = Trainer(
        max_steps=steps, logger=False, callbacks=[callback], accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    rows = torch.linspace(-1.0, 1.0, 24).reshape(8, 3)
    trainer.fit(Fitted(), DataLoader(rows, batch_size=4), **options)
    return trainer


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_fit_measures_says_and_stores_it(engine, caplog, tmp_path):
    caplog.set_level("INFO")
    callback = SobolevCallback(
        teacher().float(), EXACT_SPEC, module="net", engine=engine, compile=False
    )
    trainer = fit(callback)
    assert callback.loss.at_once.chosen["order_1"] == at_once.AT_ONCE
    said = [text for text in caplog.messages if "order_1 takes its 10 projections" in text]
    assert len(said) == 1
    assert callback.loss.at_once.news == []
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = SobolevCallback(
        teacher().float(), EXACT_SPEC, module="net", engine=engine, compile=False
    )
    caplog.clear()
    fit(resumed, steps=4, ckpt_path=tmp_path / "one.ckpt")
    assert resumed.loss.at_once.chosen == callback.loss.at_once.chosen
    assert not any("projections" in text for text in caplog.messages)


def test_a_compiled_call_refuses_a_number():
    callback = SobolevCallback(teacher().float(), EXACT_SPEC, module="net", compile=True, at_once=4)
    with pytest.raises(ValueError, match=r"at_once must be None or 1 .* compiled"):
        fit(callback)
