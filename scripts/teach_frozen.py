"""What values and derivatives teach a model at a cut when nothing moves.

``python scripts/teach_frozen.py`` trains the network of the experiment for a while, freezes it, and
teaches models of its highest and lowest cut with exact targets. Takes about a minute of one core.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.data import ImageDataModule
from lightning_sobolev.decoupled import KINDS, Matching, Message, ModelSettings, build_models, speak
from lightning_sobolev.decoupled.matching import compare
from lightning_sobolev.decoupled.probe import Nearness
from lightning_sobolev.objective import RunningScales, weighted_sum
from lightning_sobolev.tasks.image_networks import image_cnn

MATCHING = Matching(derivative_weight=100.0, normalize="none")
BATCH = 128


def half_trained(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Sequential:
    """Train a network for 300 steps and freeze it."""
    torch.manual_seed(0)
    net = image_cnn()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, fused=True)
    for _ in range(300):
        rows = torch.randint(0, len(y), (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.requires_grad_(False)


def truth(above: nn.Module, h: Tensor, y: Tensor) -> Message:
    """Return the true loss and gradient at an activation."""
    leaf = h.detach().requires_grad_()
    losses = cross_entropy(above(leaf), y, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return Message(gradient, losses).detach()


def teach(
    name: str,
    above: nn.Module,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    steps: int,
) -> None:
    """Teach one model; print how near it is after an eighth of the steps and at the end."""
    kind, terms = KINDS[name], MATCHING.terms(KINDS[name])
    torch.manual_seed(1)
    settings = ModelSettings(width=16, activation="relu")
    (model,) = build_models(kind, [tuple(train[0].shape[1:])], 10, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(2)
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(train[1]), (BATCH,), generator=generator)
        h, y = train[0][rows], train[1][rows]
        found = compare(
            terms, speak(model, kind, h, y, create_graph=True), truth(above, h, y), RunningScales()
        )
        optimizer.zero_grad()
        weighted_sum(found, {term.key: term.weight_at(0) for term in terms}).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step in (steps // 8, steps):
            near = Nearness(speak(model, kind, *val).detach(), truth(above, *val)).numbers()
            shown = ", ".join(f"{key} {number:.3f}" for key, number in near.items())
            print(f"  {name} after {step} steps: {shown}")


def main() -> None:
    """Teach the three kinds of loss models at two cuts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder with the files of Fashion-MNIST")
    parser.add_argument("--steps", type=int, default=1600, help="of every model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = ImageDataModule(root=options.root, num_train=20000)
    data.setup()
    train, val = (
        data.tables[stage][torch.arange(n)] for stage, n in (("train", 20000), ("val", 2000))
    )
    net = half_trained(train["x"], train["y"], torch.Generator().manual_seed(0))
    for cut in (3, 1):
        print(f"cut {cut}:")
        below, above = net[:cut], net[cut:]
        for name in ("critic", "vfbn", "sobolev"):
            teach(
                name,
                above,
                (below(train["x"]), train["y"]),
                (below(val["x"]), val["y"]),
                options.steps,
            )


if __name__ == "__main__":
    main()
