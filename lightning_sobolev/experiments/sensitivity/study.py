"""What follows the training of a classifier: its sensitivity, attacks, adversarial training."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_sobolev._checks import require
from lightning_sobolev._files import whole
from lightning_sobolev.adversarial import ParticleSwarm
from lightning_sobolev.experiments.images.datamodule import ImageDataModule
from lightning_sobolev.experiments.images.image_set import Labeled
from lightning_sobolev.experiments.sensitivity import adversarial_training as training
from lightning_sobolev.experiments.sensitivity import figures
from lightning_sobolev.experiments.sensitivity.attacks import Examples, attacks, measured
from lightning_sobolev.functional.projections import generator_for

AUTHORS_THRESHOLD = 1e-3


class AttackStudy(pl.Callback):
    """After the test: ``attacks.csv``, ``defences.csv``, figures, and numbers on the influences.

    Vulnerable images are the correctly classified ones of the largest influence on their own class;
    ordinary ones are drawn from all correctly classified ones. Everything is done on the CPU.

    Args:
        radius: Largest change of a pixel in 0..1.
        swarm: Further settings of the swarm.
        num_attacked: Test images of either kind.
        num_adversarial: Training images, the most vulnerable ones, from which adversarial images
            are made.
        adversarial_steps: Steps of the training that goes on with those that succeed.
        num_pixels: Pixels of the swarms that change only some.
        seed: Of everything random.
        figures: Whether to draw.
    """

    def __init__(
        self,
        *,
        radius: float = 0.1,
        swarm: Mapping[str, Any] | None = None,
        num_attacked: int = 100,
        num_adversarial: int = 500,
        adversarial_steps: int = 300,
        num_pixels: int = 100,
        seed: int = 0,
        figures: bool = True,
    ) -> None:
        self.swarm = ParticleSwarm(radius=radius, **(swarm or {}))
        self.num_attacked, self.num_adversarial = num_attacked, num_adversarial
        self.adversarial_steps, self.num_pixels = adversarial_steps, num_pixels
        self.seed, self.figures = seed, figures

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        right = isinstance(data, ImageDataModule)
        require(right, "data of AttackStudy", "an ImageDataModule", type(data).__name__)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do the study and log ``influence/`` numbers."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.default_root_dir)
        net = copy.deepcopy(pl_module.get_submodule("net"))
        model = nn.Sequential(data.tables["test"].standardize, net)  # on pixels in [0, 1]
        model.eval().requires_grad_(False).cpu()
        train, test = (_pixels(data, stage) for stage in ("train", "test"))
        with torch.enable_grad():
            seen = Examples.of(model, *(part[:2000] for part in test))
            vulnerable = seen.most_vulnerable(self.num_attacked)
            rows, made = self._attacked(model, seen, vulnerable)
            _write(folder / "attacks.csv", rows)
            earlier = training.errors(model, made["swarm"], vulnerable.labels)
            _write(folder / "defences.csv", self._trained(model, train, test, earlier))
            influences = influences_of(model, seen)
        for name, examples in influences.items():
            numbers = influence_numbers(examples)
            pl_module.log_dict({f"influence/{name}_{key}": n for key, n in numbers.items()})
        if self.figures:
            figures.draw_influence(influences, AUTHORS_THRESHOLD, folder / "influence.png")
            figures.draw_vulnerable(vulnerable, data.classes, folder / "vulnerable.png")
            path = folder / "adversarial.png"
            figures.draw_adversarial(model, vulnerable, made, data.classes, path)

    def _attacked(
        self, model: nn.Module, seen: Examples, vulnerable: Examples
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        drawn = torch.randperm(len(seen), generator=generator_for(self.seed))
        kinds = {"ordinary": seen[drawn[: self.num_attacked]], "vulnerable": vulnerable}
        rows, made = [], {}
        for kind, examples in kinds.items():
            plan = attacks(model, examples, self.swarm, num_pixels=self.num_pixels, seed=self.seed)
            for attack in plan:
                row, made[attack.name] = measured(model, examples, attack)
                rows.append({"images": kind, **row})
        return rows, made

    def _trained(
        self, model: nn.Module, train: Labeled, test: Labeled, earlier: Labeled
    ) -> list[dict[str, Any]]:
        seen = Examples.of(model, *(part[: 10 * self.num_adversarial] for part in train))
        vulnerable = seen.most_vulnerable(self.num_adversarial)
        made = training.successes(model, vulnerable, self.swarm, seed=self.seed)
        examine = partial(training.examined, test=test, earlier=earlier, swarm=self.swarm)
        examine = partial(examine, num_attacked=self.num_attacked, seed=self.seed)
        rows: list[dict[str, Any]] = [{"defence": "before", "added": 0, **examine(model)}]
        none = Labeled(train.images[:0], train.labels[:0])
        for name, added in {"originals": none, **made}.items():
            joined = Labeled(*map(torch.cat, zip(train, added, strict=True)))
            trained = training.trained_on(model, joined, self.adversarial_steps, seed=self.seed)
            rows.append({"defence": name, "added": len(added.labels), **examine(trained)})
        return rows


def influences_of(model: nn.Module, seen: Examples) -> dict[str, Examples]:
    """Differentiate the network as it is, and the same one with four times its logits."""
    # in float64: the odds against a class that the network is sure of are lost in float32
    precise = copy.deepcopy(model).double()
    images, labels = seen.images.double(), seen.labels
    return {
        "plain": Examples.of(precise, images, labels),
        "sharpened": Examples.of(lambda x: 4.0 * precise(x), images, labels),
    }


def influence_numbers(seen: Examples) -> dict[str, float]:
    """Return shares of images: influence within 1 % of the odds; cut by the threshold; cut to 0."""
    influence = seen.gradients.image_influence(seen.labels)
    cut = seen.gradients.image_influence(seen.labels, threshold=AUTHORS_THRESHOLD)
    odds = seen.odds()
    is_odds = (influence - odds).abs() <= 1e-2 * odds
    shares = {"is_odds": is_odds, "cut_differs": cut < 0.99 * influence, "cut_is_zero": cut == 0}
    return {name: float(share.double().mean()) for name, share in shares.items()}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with whole(path) as writing:
        pd.DataFrame(rows).to_csv(writing, index=False, float_format="%.6g", na_rep="nan")


def _pixels(data: ImageDataModule, stage: str) -> Labeled:
    columns = data.tables[stage].columns
    return Labeled(columns["x"].float() / 255, columns["y"])
