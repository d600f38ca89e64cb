"""What follows the training of a classifier: its sensitivity, attacks, and a defence."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lightning_sobolev.adversarial import ParticleSwarm
from lightning_sobolev.experiments.images.data import ImageDataModule
from lightning_sobolev.experiments.images.module import ClassificationModule, PixelClassifier
from lightning_sobolev.experiments.report.records import Record, write_csv
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.experiments.sensitivity.adversarial_training import (
    Defence,
    Pictures,
    examined,
    successes,
)
from lightning_sobolev.experiments.sensitivity.attacks import (
    Victims,
    attacks,
    measured,
    right_answers,
)
from lightning_sobolev.experiments.sensitivity.figures import (
    draw_adversarial,
    draw_influence,
    draw_victims,
)
from lightning_sobolev.functional.projections import generator_for

ATTACKS, DEFENCES = "attacks.csv", "defences.csv"
ATTACK_COLUMNS = ("images", "attack", "passes")
ATTACK_MEASURES = ("success", "mean_change", "changed_pixels", "seconds")
DEFENCE_COLUMNS = ("defence",)
DEFENCE_MEASURES = ("added", *(f"{n}_accuracy" for n in ("clean", "pgd", "swarm", "earlier")))
AUTHORS_THRESHOLD = 1e-3
_NUM_INFLUENCES = 2000
_SHARPER = 4.0


class AttackStudy:
    """Closing step: ``attacks.csv``, ``defences.csv``, pictures, and numbers on the influences.

    Vulnerable images are the correctly classified ones of the largest influence on their own class;
    ordinary ones are drawn from all correctly classified ones.

    Args:
        radius: Largest change of a pixel in 0..1.
        swarm: Further settings of the swarm.
        num_attacked: Test images of either kind.
        num_defence: Training images, the most vulnerable ones, from which adversarial images are
            made.
        defence_steps: Steps of the training that goes on with those that succeed.
        num_pixels: Pixels of the swarms that change only some.
        seed: Of everything random.
        picture: Whether to draw.
    """

    def __init__(
        self,
        *,
        radius: float = 0.1,
        swarm: Mapping[str, float] | None = None,
        num_attacked: int = 100,
        num_defence: int = 500,
        defence_steps: int = 300,
        num_pixels: int = 100,
        seed: int = 0,
        picture: bool = True,
    ) -> None:
        self.swarm = ParticleSwarm(radius=radius, **(swarm or {}))  # type: ignore[arg-type]
        self.num_attacked, self.num_defence = num_attacked, num_defence
        self.defence = Defence(steps=defence_steps, seed=seed)
        self.num_pixels, self.seed, self.picture = num_pixels, seed, picture

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Return the numbers on the influences.

        Raises:
            ValueError: If the run is not one of a classifier of pictures.
        """
        module, data = run.module, run.datamodule
        if not isinstance(module, ClassificationModule) or not isinstance(data, ImageDataModule):
            raise ValueError(
                "AttackStudy needs a ClassificationModule on an ImageDataModule, got "
                f"{type(module).__name__} on {type(data).__name__}"
            )
        table = data.tables["test"]
        model = PixelClassifier(module.net, table.mean, table.std).eval().requires_grad_(False)
        model = model.cpu()
        train, test = (_pictures(data, stage) for stage in ("train", "test"))
        seen = right_answers(model, *_first(test, _NUM_INFLUENCES))
        vulnerable = most_vulnerable(seen, self.num_attacked)
        lines, made = self._attacked(model, seen, vulnerable)
        write_csv(run.folder / ATTACKS, (*ATTACK_COLUMNS, *ATTACK_MEASURES), lines)
        with torch.no_grad():
            fooled = model(made["swarm"]).argmax(-1) != vulnerable.labels
        earlier = Pictures(made["swarm"][fooled], vulnerable.labels[fooled])
        defences = self._defended(model, train, test, earlier)
        write_csv(run.folder / DEFENCES, (*DEFENCE_COLUMNS, *DEFENCE_MEASURES), defences)
        influences = influences_of(model, seen)
        if self.picture:
            draw_influence(influences, AUTHORS_THRESHOLD, run.folder / "influence.png")
            draw_victims(vulnerable, run.folder / "vulnerable.png")
            draw_adversarial(model, vulnerable, made, run.folder / "adversarial.png")
        return {
            f"influence/{name}_{key}": share
            for name, found in influences.items()
            for key, share in influence_numbers(found).items()
        }

    def _attacked(
        self, model: nn.Module, seen: Victims, vulnerable: Victims
    ) -> tuple[list[Record], dict[str, Tensor]]:
        """Return the lines of the table, and the images made of the vulnerable ones."""
        drawn = torch.randperm(len(seen.labels), generator=generator_for(self.seed))
        kinds = {"ordinary": seen.of(drawn[: self.num_attacked]), "vulnerable": vulnerable}
        lines, made = [], {}
        for kind, victims in kinds.items():
            planned = attacks(
                model, victims, self.swarm, num_pixels=self.num_pixels, seed=self.seed
            )
            for name, passes, attack in planned:
                line, made[name] = measured(model, victims, name, passes, attack)
                lines.append({"images": kind, **line})
        return lines, made

    def _defended(
        self, model: nn.Module, train: Pictures, test: Pictures, earlier: Pictures
    ) -> list[Record]:
        """Return a line for the network as it is and one for every set that joins its training."""
        seen = right_answers(model, *_first(train, 10 * self.num_defence))
        added = successes(
            model, most_vulnerable(seen, self.num_defence), self.swarm, seed=self.seed
        )
        examine = partial(
            examined,
            test=test,
            earlier=earlier,
            swarm=self.swarm,
            num_attacked=self.num_attacked,
            seed=self.seed,
        )
        none = Pictures(train.images[:0], train.labels[:0])
        lines: list[Record] = [{"defence": "before", "added": 0, **examine(model)}]
        for name, more in {"originals": none, **added}.items():
            defended = self.defence(model, train.joined(more))
            lines.append({"defence": name, "added": len(more.labels), **examine(defended)})
        return lines


def most_vulnerable(seen: Victims, count: int) -> Victims:
    """Return the images of the largest influence on their own class.

    Args:
        seen: Correctly classified images.
        count: How many, at most.
    """
    influence = seen.gradients.image_influence(seen.labels)
    return seen.of(influence.topk(min(count, len(influence))).indices)


def influences_of(model: nn.Module, seen: Victims) -> dict[str, Victims]:
    """Differentiate the network as it is, and the same one with four times its logits.

    In float64: the odds against a class that the network is sure of are lost in float32.

    Args:
        model: Gives logits of pixels.
        seen: Correctly classified images.

    Returns:
        The same images with gradients of either network: ``plain``, and ``sharpened``, which is
        far surer of itself and errs as often.
    """
    precise = copy.deepcopy(model).double()
    images, labels = seen.images.double(), seen.labels
    return {
        "plain": right_answers(precise, images, labels),
        "sharpened": right_answers(lambda x: _SHARPER * precise(x), images, labels),
    }


def influence_numbers(seen: Victims) -> dict[str, float]:
    """Say how often the image's influence is the odds against its class, and the authors' form.

    Args:
        seen: Correctly classified images.

    Returns:
        The share of images whose influence is within 1 % of the odds, and the shares of those where
        the authors' threshold makes it smaller by more, or zero.
    """
    influence = seen.gradients.image_influence(seen.labels)
    cut = seen.gradients.image_influence(seen.labels, threshold=AUTHORS_THRESHOLD)
    odds = seen.odds()
    shares = {
        "is_odds": (influence - odds).abs() <= 1e-2 * odds,
        "cut_differs": cut < 0.99 * influence,
        "cut_is_zero": cut == 0,
    }
    return {name: float(share.double().mean()) for name, share in shares.items()}


def _first(pictures: Pictures, count: int) -> tuple[Tensor, Tensor]:
    return pictures.images[:count], pictures.labels[:count]


def _pictures(data: ImageDataModule, stage: str) -> Pictures:
    columns = data.tables[stage].columns
    return Pictures(columns["x"].float() / 255, columns["y"])
