"""Measure band-limited convolutions beside torch's own: ``python scripts/measure_bands.py``.

Forward and backward pass of one layer, all ways in turns, by processor time on one thread: other
programs do not count, though caches are shared with them. ``saved_mb`` is what the forward pass
keeps for the backward pass, weights and input included.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_sobolev.layers import BandLimitedConv1d, BandLimitedConv2d
from lightning_sobolev.tasks.records import Record, write_csv

# axes, channels in and out, kernel, size of the map, batch
LAYERS = (
    (2, 1, 8, 5, 28, 64),
    (2, 8, 16, 5, 14, 64),
    (2, 32, 32, 3, 28, 32),
    (2, 64, 64, 3, 14, 32),
    (2, 16, 16, 7, 56, 16),
    (2, 16, 16, 11, 56, 16),
    (1, 16, 16, 5, 1000, 32),
    (1, 16, 16, 65, 1000, 32),
)
RATES = (0.0, 50.0, 85.0, 95.0)
COLUMNS = ("axes", "in", "out", "kernel", "size", "batch", "layer", "ms", "ms_median", "saved_mb")


def _layers(axes: int, channels_in: int, out: int, kernel: int) -> dict[str, nn.Module]:
    plain, limited = (nn.Conv1d, BandLimitedConv1d) if axes == 1 else (nn.Conv2d, BandLimitedConv2d)
    shape, padding = (channels_in, out, kernel), kernel // 2
    layers: dict[str, nn.Module] = {"torch": plain(*shape, padding=padding)}
    for rate in RATES:
        layers[f"rate {rate:g}"] = limited(*shape, padding=padding, rate=rate)
    return layers


def _saved(layer: nn.Module, x: Tensor) -> float:
    """Return megabytes that are kept for the backward pass; what is shared counts once."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = layer(x)
    del kept
    return sum(sizes.values()) / 1e6


def _milliseconds(step: Callable[[], None]) -> float:
    started = time.process_time()
    step()
    return 1e3 * (time.process_time() - started)


def _measure(shape: tuple[int, ...], repeats: int) -> list[Record]:
    axes, channels_in, out, kernel, size, batch = shape
    x = torch.randn(batch, channels_in, *[size] * axes, requires_grad=True)
    layers = _layers(axes, channels_in, out, kernel)

    def step(layer: nn.Module) -> None:
        layer(x).square().sum().backward()

    times: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(repeats + 1):
        for name, layer in layers.items():
            found = _milliseconds(lambda layer=layer: step(layer))  # type: ignore[misc]
            if turn:  # the first one builds plans
                times[name].append(found)
    return [
        dict(
            zip(
                COLUMNS,
                (*shape, name, min(found), statistics.median(found), _saved(layers[name], x)),
                strict=True,
            )
        )
        for name, found in times.items()
    ]


def main() -> None:
    """Measure every layer and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bandlimit_speed.csv"), help="the table")
    parser.add_argument("--repeats", type=int, default=9, help="timed passes of each layer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records: list[Record] = []
    for shape in LAYERS:
        records += _measure(shape, given.repeats)
        write_csv(given.out, COLUMNS, records)
        for record in records[-len(RATES) - 1 :]:
            print(
                " ".join(
                    f"{record[c]:>10.4g}" if c in COLUMNS[-3:] else f"{record[c]:>8}"
                    for c in COLUMNS
                )
            )


if __name__ == "__main__":
    main()
