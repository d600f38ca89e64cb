"""Where an interrupted run goes on, and the command that makes it."""

import logging
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from lightning_sobolev.experiments.run.saving import whole_checkpoint

log = logging.getLogger(__name__)

LAST = Path("checkpoints") / "last.ckpt"


def checkpoint_to_resume(ckpt: str | None, folder: Path) -> Path | None:
    """Find the checkpoint to go on from.

    Args:
        ckpt: None, a path, or ``"last"``: this run's own if the folder is an earlier run's, else
            the newest beside it.
        folder: The folder of this run.

    Returns:
        Its path, or None for a fresh start.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    if ckpt is None:
        return None
    if ckpt != "last":
        if not Path(ckpt).is_file():
            raise ValueError(f"ckpt must be 'last' or an existing file, got {ckpt!r}")
        return whole_checkpoint(Path(ckpt))
    if (folder / LAST).is_file():
        return whole_checkpoint(folder / LAST)
    found = sorted(folder.parent.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"ckpt=last needs an earlier run's {LAST} below {folder.parent}, got none")
    log.info("going on from %s", found[-1])
    return whole_checkpoint(found[-1])


def command_to_resume(checkpoint: Path) -> str:
    """Return the command line that goes on from a checkpoint.

    Args:
        checkpoint: The file.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [override for override in overrides if not override.startswith("ckpt=")]
    return shlex.join(["python", sys.argv[0], *kept, f"ckpt={checkpoint}"])
