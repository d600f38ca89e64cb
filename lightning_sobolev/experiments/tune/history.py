"""What a population went through: who trained with what, and from whose weights."""

from pathlib import Path

import numpy as np
import pandas as pd

from lightning_sobolev.experiments.tune.trainable import SETTING


def read_history(folder: Path) -> pd.DataFrame:
    """Read what the members reported; Ray's ``result.json`` have gaps where actors are reused.

    A row a member and interval: ``interval`` (from 1), ``member``, ``parent`` (whose weights it
    began from), ``end`` (the last step), ``score`` and a column a setting. Of an interval that was
    trained twice, around a kill, the later one.
    """
    files = [path for path in sorted(folder.glob("*/progress.csv")) if path.stat().st_size]
    found = pd.concat([pd.read_csv(path) for path in files], ignore_index=True)
    found = found.rename(columns={"training_iteration": "interval"})
    settings = [name for name in found.columns if name.startswith(SETTING)]
    kept = found[["interval", "member", "parent", "end", "score", *settings]]
    kept = kept.drop_duplicates(["interval", "member"], keep="last")
    return kept.sort_values(["interval", "member"], ignore_index=True)


def best_member(history: pd.DataFrame, mode: str) -> int:
    """Return the member with the best last score; those that diverged do not count."""
    last = history[history["interval"] == history["interval"].max()].set_index("member")["score"]
    finite = last[np.isfinite(last)]
    if finite.empty:
        raise ValueError("at least one member must end with a finite score, got none")
    return int(finite.idxmin() if mode == "min" else finite.idxmax())


def ancestry(history: pd.DataFrame, member: int) -> pd.DataFrame:
    """Return the rows, by interval and member, along which a member's last weights came about."""
    at = history.set_index(["interval", "member"])
    line = []
    for interval in range(history["interval"].max(), 0, -1):
        line.append((interval, member))
        member = int(at.loc[(interval, member), "parent"])
    return at.loc[line[::-1]]
