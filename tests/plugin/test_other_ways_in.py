"""LightningCLI, Fabric, the mixin, and the package's other name: one student by every way in."""

import re
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import Cosine, SobolevCallback, SobolevMixin, SobolevSpec, SobolevTerm
from tests.plugin._loops import by_hand
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import QUIET, fit, points, weights

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def block(language, mark):
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [text for text in blocks if mark in text]
    return found


# Of LightningCLI's own calls.
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_lightning_cli_builds_callback_and_spec_from_yaml(tmp_path, monkeypatch):
    text = block("yaml", "SobolevCallback")
    for mine, theirs in {"Teacher": "_cli.Teacher", "Student": "_students.Regressor"}.items():
        text = text.replace(f"my_project.{mine}", f"tests.plugin.{theirs}")
    config = tmp_path / "config.yaml"
    config.write_text(f"{text}data:\n  class_path: tests.plugin._cli.Data\n")
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--config", str(config)])
    cli = LightningCLI(
        trainer_defaults=QUIET, save_config_callback=None, seed_everything_default=False
    )
    terms = [SobolevTerm(weight=Cosine(0.1, 0.01, steps=10)), SobolevTerm(order=2, weight=0.01)]
    expected = Regressor()
    spec = SobolevSpec(terms=terms, on="log_softmax")
    fit(expected, points(), SobolevCallback(mlp(seed=7), spec, module="net"))
    assert_close(weights(cli.model), weights(expected), rtol=0, atol=0)


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 1}}


def labels(name, **options):
    return {"class_path": f"lightning_sobolev.{name}", "init_args": options}


@pytest.mark.parametrize(
    "teacher",
    [
        {"class_path": "lightning_sobolev.BatchTeacher", "init_args": {"jacobian": "forces"}},
        {
            "class_path": "lightning_sobolev.AnalyticTeacher",
            "init_args": {"value": "tests.plugin._cli.bowl"},
        },
        LINEAR,
        {
            "class_path": "lightning_sobolev.NetworkTeacher",
            "init_args": {"network": LINEAR, "inputs": [["x", "y"]], "shared": "x"},
        },
        {
            "class_path": "lightning_sobolev.TeacherChoice",
            "init_args": {"teachers": [LINEAR, labels("BatchTeacher", jacobian="j")]},
        },
        labels("DirectionalTeacher", tangents="v", pushed="hv", order=2, per_step=1),
        labels("AdjointTeacher", cotangents="u", pulled="jtu"),
        labels("ReducedTeacher", reduced="r", left="u", right_metric=[1.0, 2.0]),
        labels("ReducedTeacher", reduced="r", right=[[1.0, 0.0, 2.0]]),
        labels("MixedTeacher", mixed="born", scale=-1.0),
        labels("TraceTeacher", trace="t", matrix=[[1.0, 0.0], [0.0, 2.0]], probes=2),
    ],
)
def test_every_kind_of_teacher_has_a_class_path(teacher):
    parser = ArgumentParser()
    parser.add_class_arguments(SobolevCallback, "callback")
    built = parser.instantiate(parser.parse_object({"callback": {"teacher": teacher}})).callback
    name = teacher["class_path"].rpartition(".")[2]
    assert name in (type(built.teacher).__name__, type(vars(built.teacher).get("network")).__name__)


def test_fabric_users_write_the_objective_into_their_loop():
    net = mlp()
    names = {
        "net": net, "teacher_network": mlp(seed=7), "loader": points(),
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.05), "mse_loss": mse_loss,
    }  # fmt: skip
    exec(compile(block("python", "Fabric("), str(PAGE), "exec"), names)
    assert_close(weights(net), by_hand(None, SobolevTerm(weight=0.1)), rtol=1e-12, atol=1e-12)


@pytest.fixture
def other():
    """The same Lightning under its other name, with classes of its own."""
    return pytest.importorskip("pytorch_lightning")


def renamed(other, *bases):
    """The regressor as a user of the other name writes it."""

    class Renamed(*bases, other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        forward = Regressor.forward

        def training_step(self, batch, batch_idx):
            return mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

        def configure_sobolev(self):
            return SobolevCallback(mlp(seed=7))

    return Renamed


@pytest.mark.parametrize("by", ["callback", "mixin"])
def test_pytorch_lightning_gives_the_same_student(other, by):
    kind = renamed(other, *([SobolevMixin] if by == "mixin" else []))
    module = kind()
    callbacks = [SobolevCallback(mlp(seed=7))] if by == "callback" else []
    other.Trainer(callbacks=callbacks, max_epochs=1, **QUIET).fit(module, points())
    assert_close(weights(module), by_hand())


def test_a_mixin_behind_the_other_lightning_module_is_refused(other):
    with pytest.raises(TypeError, match="must list SobolevMixin before LightningModule"):
        type("Behind", (other.LightningModule, SobolevMixin), {})


# The mixin brings the callback; how the class writes its step does not matter


class Brings(SobolevMixin):
    def configure_sobolev(self):
        return SobolevCallback(mlp(seed=7))


class InheritedStep(Brings, Regressor):
    """The step comes from a base class."""


class OtherCallbacks(Brings, Regressor):
    def configure_callbacks(self):
        return [*super().configure_callbacks(), L.Callback()]


class OneCallback(Regressor):
    def configure_callbacks(self):
        return L.Callback()


class BaseBringsCallbacks(Brings, OneCallback):
    pass


@pytest.mark.parametrize("layout", [InheritedStep, OtherCallbacks, BaseBringsCallbacks])
def test_every_layout_trains_as_the_hand_written_loop(layout):
    module = layout()
    fit(module, points())
    assert_close(weights(module), by_hand())


def test_a_mixin_behind_the_lightning_module_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="Late must list SobolevMixin before LightningModule"):

        class Late(Regressor, SobolevMixin):
            pass


def test_a_mixin_without_configuration_is_refused():
    class Unfinished(SobolevMixin, Regressor):
        pass

    with pytest.raises(TypeError, match=r"Unfinished must define configure_sobolev\(\)"):
        fit(Unfinished(), points())


def test_a_lost_callback_is_found_before_training():
    class Loses(Brings, Regressor):
        def configure_callbacks(self):
            return [L.Callback()]

    module = Loses()
    before = weights(module)
    with pytest.raises(ValueError, match=r"Loses\.configure_callbacks must extend super"):
        fit(module, points())
    assert_close(weights(module), before, rtol=0, atol=0)
