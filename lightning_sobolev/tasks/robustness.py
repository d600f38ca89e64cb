"""How far small changes of the input carry stored students away from what they were taught."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from lightning_sobolev.adversarial import GradientAttack
from lightning_sobolev.data import ImageDataModule
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.tasks.classification import PixelClassifier
from lightning_sobolev.tasks.columns import Layout
from lightning_sobolev.tasks.records import Record, find_runs, write_csv
from lightning_sobolev.tasks.stored import chosen_weights, load_module
from lightning_sobolev.tasks.tables import summarize, write_markdown

_ABOUT = {
    "experiment": "config:name",
    "sobolev": "choice:sobolev",
    "projection": "config:sobolev.projection",
    "weight": "config:sobolev.weight",
    "seed": "config:seed",
}
_MEASURES = ("wrong", "changed")


@dataclass(frozen=True, slots=True)
class Examined:
    """A stored student, inputs it has not seen, and what it should answer.

    Args:
        logits: Of the student, a column for every group of answers that mean the same.
        inputs: Pixels in 0..1.
        answers: Of its teacher, or the labels.
    """

    logits: Callable[[Tensor], Float[Tensor, "batch groups"]]
    inputs: Float[Tensor, "batch *pixels"]
    answers: Int[Tensor, " batch"]

    def under(self, radius: float, *, steps: int = 10, seed: int = 0) -> dict[str, float]:
        """Attack by projected gradient ascent.

        Args:
            radius: Largest change of a pixel; 0 for none.
            steps: Of the attack, a quarter of the radius each.
            seed: Of its start.

        Returns:
            ``wrong``, the share of answers that are not the right ones, and ``changed``, the share
            that are not those without the attack.
        """
        attacked = self.inputs
        if radius > 0:
            attack = GradientAttack(radius=radius, steps=steps)
            generator = generator_for(seed)
            attacked = attack(self.logits, self.inputs, self.answers, generator=generator)
        with torch.no_grad():
            before, after = (self.logits(x).argmax(-1) for x in (self.inputs, attacked))
        return {
            "wrong": float((after != self.answers).float().mean()),
            "changed": float((after != before).float().mean()),
        }


def grouped(
    logits: Float[Tensor, "batch classes"], same: Sequence[Sequence[int]]
) -> Float[Tensor, "batch groups"]:
    """Add up the probabilities of classes that mean the same.

    Args:
        logits: Of every class.
        same: Groups of such classes; the others stay alone.

    Returns:
        Log-probabilities, up to a constant in every row, groups first.
    """
    together = [list(group) for group in same]
    alone = set(range(logits.shape[1])) - {member for group in together for member in group}
    groups = together + [[member] for member in sorted(alone)]
    return torch.stack([logits[:, group].logsumexp(1) for group in groups], dim=1)


def read_back(cfg: DictConfig, checkpoint: Path, *, count: int) -> Examined:
    """Return a stored student with test inputs.

    Args:
        cfg: The configuration of its run, a distillation of a policy or a classifier of pictures.
        checkpoint: Its weights.
        count: Test inputs, the first ones.

    Returns:
        The student; answers are the teacher's likeliest actions, or the labels of the pictures.
    """
    module, data = load_module(cfg, checkpoint), instantiate(cfg.data)
    net = module.net.requires_grad_(False)
    data.setup("test")
    if isinstance(data, ImageDataModule):
        table = data.tables["test"]
        images = table.columns["x"][:count].float() / 255
        pixels = PixelClassifier(net, table.mean, table.std).eval()
        return Examined(pixels, images, table.columns["y"][:count])
    batches = []
    for batch in data.test_dataloader():
        batches.append(batch)
        if sum(len(part["x"]) for part in batches) >= count:
            break
    states = torch.cat([batch["x"] for batch in batches])[:count].float() / 255
    taught = torch.cat([batch["log_probs"] for batch in batches])[:count]
    same = cfg.env.same_actions
    answers = grouped(taught, same).argmax(-1)
    return Examined(lambda x: grouped(net(x), same), states, answers)


def robustness(
    root: Path,
    out: Path,
    *,
    name: str,
    radii: Sequence[float] = (0, 1, 2, 4, 8),
    count: int = 256,
) -> list[Path]:
    """Attack every finished run below a folder; write ``NAME.csv`` and ``NAME.md``.

    Args:
        root: A folder with finished runs; recordings of frames must still be there.
        out: Folder of the tables.
        name: Of the tables.
        radii: Largest changes of a pixel in 255ths.
        count: Test inputs of a run.

    Returns:
        The tables.

    Raises:
        ValueError: If there is no finished run.
    """
    records: list[Record] = []
    for run in find_runs(root):
        about = {key: run.look_up(source) for key, source in _ABOUT.items()}
        if about["sobolev"] == "none":
            about |= {"projection": "", "weight": ""}
        examined = read_back(run.config, chosen_weights(run.folder), count=count)
        for radius in radii:
            shares = examined.under(radius / 255)
            records.append({**about, "radius": float(radius), **shares})
    layout = Layout(name, dict.fromkeys([*_ABOUT, "radius"], ""), dict.fromkeys(_MEASURES, ""))
    out.mkdir(parents=True, exist_ok=True)
    table, text = out / f"{name}.csv", out / f"{name}.md"
    write_csv(table, layout.columns, records)
    source = f"scripts/robustness.py --name {name}"
    write_markdown(text, layout, summarize(layout, records), source=source)
    return [table, text]
