from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev import NetworkTeacher, Recombine
from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.functional.discrepancies import POLICY_LOSSES
from lightning_sobolev.policies import DiscreteHead
from tests.experiments.distillation.conftest import QUIET, module_of

SHAPE, ACTIONS, ROWS = (2, 3, 3), 4, 10


def policy(seed):
    torch.manual_seed(seed)
    flat = torch.Size(SHAPE).numel()
    net = nn.Sequential(nn.Flatten(), nn.Linear(flat, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
    return net.double()


def batch_of(teacher):
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (ROWS, *SHAPE), generator=generator, dtype=torch.uint8)
    log_probs = torch.log_softmax(teacher(x.double() / 255), -1).detach()
    return {"x": x, "log_probs": log_probs, "index": torch.arange(ROWS)}


def results_of(module, batch):
    """Test on two unequal parts of the batch, under inference mode as users do."""
    parts = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 7), slice(7, ROWS))]
    trainer = pl.Trainer(**QUIET)
    return trainer.test(module, DataLoader(parts, batch_size=None), verbose=False)[0]


def dense_jacobian(net, x):
    def log_probs(point):
        return torch.log_softmax(net(point), -1).sum(0)

    return torch.autograd.functional.jacobian(log_probs, x.double() / 255).movedim(1, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_are_those_of_the_dense_jacobian(seed):
    """A student with the teacher's seed is the teacher."""
    teacher, student = policy(0), policy(seed)
    batch = batch_of(teacher)
    result = results_of(module_of(student, teacher), batch)
    ours, theirs = dense_jacobian(student, batch["x"]), dense_jacobian(teacher, batch["x"])
    log_probs = torch.log_softmax(student(batch["x"].double() / 255), -1).detach()
    differ = (log_probs.argmax(-1) != batch["log_probs"].argmax(-1)).double().mean()
    expected = {
        "kl": (batch["log_probs"].exp() * (batch["log_probs"] - log_probs)).sum(-1).mean(),
        "action_disagreement": differ,
        "merged_disagreement": differ,
        "derivative_nmse": (ours - theirs).square().sum() / theirs.square().sum(),
    }
    for name, value in expected.items():
        assert result[f"test/{name}"] == pytest.approx(float(value), rel=1e-5, abs=1e-12)
    assert set(result) - {f"test/{name}" for name in expected} == {"test/derivative_cosine"}
    assert (result["test/derivative_cosine"] == pytest.approx(1.0, abs=1e-6)) == (seed == 0)


def test_actions_that_do_the_same_may_be_confused():
    swapped = policy(0)
    with torch.no_grad():
        for parameter in swapped[-1].parameters():
            parameter.copy_(parameter[[1, 0, 3, 2]])
    module = module_of(swapped, same_actions=[[0, 1], [2, 3]])
    result = results_of(module, batch_of(policy(0)))
    assert result["test/action_disagreement"] == 1.0
    assert result["test/merged_disagreement"] == 0.0
    assert "test/derivative_nmse" not in result


def test_the_teacher_is_no_part_of_the_module():
    module = module_of(policy(1), policy(0))
    assert all(name.startswith("net.") for name in module.state_dict())
    assert not {"net", "teacher", "optimizer", "scheduler"} & set(module.hparams)


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_training_lowers_the_divergence(loss):
    teacher = policy(0)
    batch = batch_of(teacher)
    module = module_of(policy(1), loss=loss, scheduler=partial(CosineAnnealingLR, T_max=60))
    before = results_of(module, batch)["test/kl"]
    trainer = pl.Trainer(max_steps=60, enable_checkpointing=False, **QUIET)
    loaders = (DataLoader([batch] * count, batch_size=None) for count in (60, 1))
    trainer.fit(module, *loaders)
    assert results_of(module, batch)["test/kl"] < 0.2 * before
    assert_close(torch.tensor(trainer.optimizers[0].param_groups[0]["lr"]), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("changes", "first", "second"), [({}, 1, 0), ({"loss": "reverse_kl"}, 0, 1)]
)
def test_the_loss_is_the_divergence_from_teacher_to_student_or_back(
    changes, first, second, monkeypatch
):
    """The default is the first; 0 is the student, 1 the teacher."""
    batch = batch_of(policy(0))
    module = module_of(policy(1), **changes)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)  # there is no trainer
    policies = [Categorical(logits=logits) for logits in (module(batch["x"]), batch["log_probs"])]
    assert_close(
        module.training_step(batch, 0),
        torch.distributions.kl_divergence(policies[first], policies[second]).mean(),
    )
    with pytest.raises(ValueError, match=r"loss must be one of \('kl', .* got 'mse'"):
        module_of(policy(0), loss="mse")


def test_log_probabilities_are_float32_under_autocast():
    logits = (torch.randn(64, 6) + 30.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        total = DiscreteHead().answers(logits).exp().sum(-1)
    assert_close(total, torch.ones(64))


# Queries


def losses_of(module, steps=6, **trainer):
    """Train on the same eight batches of wrong answers, pass by pass; return every loss."""
    seen = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(float(outputs["loss"]))

    batch = batch_of(policy(7))
    parts = [{k: v.roll(i, 0) for k, v in batch.items() if k != "log_probs"} for i in range(8)]
    parts = [{**part, "log_probs": batch["log_probs"]} for part in parts]
    options = {**QUIET, "enable_checkpointing": False, "limit_val_batches": 0}
    options |= {"max_steps": steps, "max_epochs": -1}
    fitting = pl.Trainer(callbacks=[Note()], **options, **trainer)
    loader = DataLoader(parts, batch_size=None)
    fitting.fit(module, loader, loader)
    return seen


def flipped(x, _):
    return x.flip(-1)


def test_queries_are_answered_by_the_teacher_and_not_by_the_batch():
    teacher = policy(0)
    (stored,) = losses_of(module_of(policy(0), teacher), steps=1)
    (asked,) = losses_of(module_of(policy(0), teacher, queries=flipped), steps=1)
    assert stored > 1e-3
    assert asked == pytest.approx(0.0, abs=1e-12)


def test_queries_are_other_ones_in_every_step_and_the_same_for_a_seed():
    frozen = partial(torch.optim.SGD, lr=0.0)  # what differs is then the states alone
    options = {"queries": Recombine(1.0, kinds="grid:3")}

    def losses(seed):
        net, teacher = policy(1), policy(0)
        module = DistillationModule(
            net, frozen, teacher=NetworkTeacher(teacher), **options, seed=seed
        )
        return losses_of(module, steps=9)

    found = losses(0)
    assert len(set(found)) == 9  # the ninth step sees the first batch again
    assert losses(0) == found
    assert losses(1) != found


def test_queries_need_somebody_to_ask():
    with pytest.raises(ValueError, match="teacher must be a NetworkTeacher to ask queries of, got"):
        module_of(policy(0), queries=flipped)
