"""What metrics mean, and how they are named and drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lightning_sobolev._files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's: everybody can tell them apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
AMOUNTS = {
    "fraction": "fraction of the training states",
    "num_frames": "training frames",
    "num_points": "training points",
    "num_samples": "training samples",
}
_LABELS = {
    "seconds": "training (s)",
    "energy_mae": "energy MAE (eV)",
    "force_mae": "force MAE (eV/Å)",
}
_WORDS = {"kl": "KL (nats)", "nmse": "NMSE", "rmse": "RMSE", "mae": "MAE"}


class Metric(NamedTuple):
    """Which numbers of a metric are better, where some are, and the scale of its axis."""

    better: Literal["lower", "higher", ""]
    scale: Literal["log", "linear"]


ERROR, SCORE, FACT = Metric("lower", "log"), Metric("higher", "linear"), Metric("", "linear")
# By a part of the name, the first that fits; whatever fits none is an error.
METRICS = {
    "seconds": FACT,
    "accuracy": SCORE,
    "cosine": SCORE,
    "return": SCORE,
    "per_second": SCORE,
    "explained_variance": SCORE,
    **dict.fromkeys(("score", "noise_", "steps", "copies", "waited", "length", "weight"), FACT),
}


def metric(name: str) -> Metric:
    """Return what the numbers of a metric mean, by the name of its column."""
    return next((meaning for part, meaning in METRICS.items() if part in name), ERROR)


def label_of(name: str) -> str:
    """Return the words for a column that stand at an axis."""
    name = name.removeprefix("test_").removeprefix("val/")
    words = name.replace("/", " ").replace("_", " ").split()
    return (AMOUNTS | _LABELS).get(name, " ".join(_WORDS.get(word, word) for word in words))


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure, whole or not at all; the path ends in the format."""
    with whole(path) as writing:
        figure.savefig(writing, dpi=120, format=path.suffix.removeprefix("."))
    return path
