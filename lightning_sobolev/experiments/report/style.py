"""What metrics mean, and how they are named and drawn."""

# Okabe and Ito's: everybody can tell them apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
AMOUNTS = {
    "fraction": "fraction of the training states",
    "num_frames": "training frames",
    "num_points": "training points",
    "num_samples": "training samples",
}
_LABELS = {
    **AMOUNTS,
    "seconds": "training (s)",
    "energy_mae": "energy MAE (eV)",
    "force_mae": "force MAE (eV/Å)",
}
_WORDS = {"kl": "KL (nats)", "nmse": "NMSE", "rmse": "RMSE", "mae": "MAE"}
# By a part of the name; whatever fits none is an error.
_SCORES = ("accuracy", "cosine", "return", "per_second", "explained_variance")
_FACTS = ("seconds", "score", "noise_", "steps", "copies", "waited", "length", "weight")


def better(name: str) -> str:
    """Say which numbers of a metric are better, ``lower``, ``higher`` or neither (empty)."""
    if any(part in name for part in _SCORES):
        return "higher"
    return "" if any(part in name for part in _FACTS) else "lower"


def scale(name: str, lowest: float) -> str:
    """Return the scale of a metric's axis."""
    return "log" if better(name) == "lower" and lowest > 0 else "linear"


def label_of(name: str) -> str:
    """Return the words for a column that stand at an axis."""
    name = name.removeprefix("test_").removeprefix("val/")
    words = name.replace("/", " ").replace("_", " ").split()
    return _LABELS.get(name, " ".join(_WORDS.get(word, word) for word in words))
