"""The checkpoint from which an interrupted run goes on: how it is kept, checked and found."""

import logging
import shlex
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig
from torch.distributed.tensor import DTensor

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.run.conf import differences, read_config

log = logging.getLogger(__name__)

LAST = Path("checkpoints") / "last.ckpt"
BEST = LAST.with_name("best.ckpt")  # of callbacks=best
_SHOWN = 6  # settings that differ: a run of another edition has a hundred
_PATHS = ("best_model_path", "kth_best_model_path")


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt`` up to date: now and then, behind epochs, and when training breaks off.

    A file is replaced only by a complete one, never by weights that an exception left half updated
    or that are not finite: Lightning's ``ModelCheckpoint`` saves both. Being a ``Checkpoint``, it
    comes after all other callbacks, so what they store is as old as the weights.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.path = Path(folder) / LAST.name
        self.every_n_steps = every_n_steps
        self._saved_step = -1
        self._updating_step = -1
        self._is_due = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note that weights begin to change; the step's number moves on when they have."""
        self._updating_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note when it is time."""
        # Data may grow between epochs by what these weights decide: that must not be repeated.
        self._is_due = trainer.global_step % self.every_n_steps == 0 or trainer.is_last_batch

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save the last step, where its validation is over too and nothing of this one happened."""
        if self._is_due:
            self._is_due = False
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save the trained module."""
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save what training has come to, whatever ended it; its cause stays the error.

        Not with several processes: the others may be anywhere, or gone, and would be waited for.
        """
        is_new = trainer.global_step not in (0, self._saved_step)
        if trainer.state.fn != TrainerFn.FITTING or not is_new:
            return
        is_alone, is_half = trainer.world_size == 1, self._updating_step == trainer.global_step
        if is_half or not is_alone:
            why = "its update was broken off" if is_alone else "other processes may be anywhere"
            log.warning("step %d is not saved (%s): %s", trainer.global_step, why, self._last())
            return
        try:
            self._save(trainer)
        except (OSError, FloatingPointError) as error:
            log.warning("%s", error)

    def on_save_checkpoint(self, _: Any, __: Any, checkpoint: dict[str, Any]) -> None:
        """Forget a batch that was begun and broken off.

        Lightning counts it, and a resumed run would validate a step early for every one of them.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["processed"]

    def _save(self, trainer: pl.Trainer) -> None:
        # Under gradient accumulation several batches end at the same step.
        step = trainer.global_step
        if step == self._saved_step:
            return
        weights = trainer.lightning_module.parameters()
        own = (p.to_local() if isinstance(p, DTensor) else p for p in weights)
        is_finite = all(bool(p.isfinite().all()) for p in own)
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            text = f"the weights must be finite, got others at step {step}: {self._last()}"
            raise FloatingPointError(text)
        try:
            if trainer.is_global_zero:
                with whole(self.path) as writing:
                    trainer.save_checkpoint(writing)
            else:
                trainer.save_checkpoint(self.path)  # all take part, the first process writes
        except OSError as error:
            text = f"step {step} could not be saved ({error}): {self._last()}"
            raise OSError(error.errno, text) from error
        self._saved_step = step

    def _last(self) -> str:
        step = self._saved_step
        return f"{self.path} holds step {step}" if step >= 0 else "nothing was saved in this run"


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, the weights of the best validation; a resumed run goes on with it.

    Lightning forgets the scores of a run that is resumed in another folder; here they stay.

    Args:
        folder: Where ``best.ckpt`` goes.
        monitor: The key of the score.
        mode: ``"min"`` or ``"max"``.
    """

    def __init__(self, folder: str | Path, monitor: str, mode: str = "min") -> None:
        options: dict[str, Any] = {"save_weights_only": True, "enable_version_counter": False}
        super().__init__(folder, BEST.stem, monitor, mode=mode, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best weights so far, and their score."""
        earlier, here = Path(state_dict["best_model_path"]), Path(str(self.dirpath)) / BEST.name
        if earlier.is_file() and earlier != here:
            with whole(here) as writing:
                shutil.copyfile(earlier, writing)
        moved = {key: str(here) for key in _PATHS if state_dict[key]}
        models = {str(here): score for score in state_dict["best_k_models"].values()}
        places = {"dirpath": self.dirpath, "best_k_models": models}
        super().load_state_dict(state_dict | moved | places)


def whole_checkpoint(path: Path) -> Path:
    """Check, in one pass, that a checkpoint is whole and what was written."""
    try:
        with zipfile.ZipFile(path) as file:  # torch's format; every part has a checksum
            damaged = file.testzip()
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"ckpt must be a whole checkpoint, got {path}: {error}") from error
    if damaged is not None:
        raise ValueError(f"ckpt must be a whole checkpoint, got {path}: {damaged} is damaged")
    return path


def checkpoint_to_resume(cfg: DictConfig, free: Sequence[str] = ()) -> Path | None:
    """Find the checkpoint to go on from; settings, or groups of them, that are ``free`` may differ.

    ``"last"`` is this run's own if the folder is an earlier run's, else the newest beside it.
    """
    folder = Path(cfg.run_dir)
    if cfg.ckpt is None:
        return None
    if cfg.ckpt != "last":
        if not Path(cfg.ckpt).is_file():
            raise ValueError(f"ckpt must be 'last' or an existing file, got {cfg.ckpt!r}")
        return whole_checkpoint(Path(cfg.ckpt))
    found = folder / LAST
    if not found.is_file():
        others = folder.parent.glob(f"*/{LAST}")
        found = max(others, key=lambda path: path.stat().st_mtime, default=found)
    if not found.is_file():
        raise ValueError(f"ckpt=last needs an earlier run's {LAST} below {folder.parent}, got none")
    earlier = read_config(found.parents[1])
    found_others = differences(earlier, cfg) if earlier is not None else []
    beginnings = tuple(f"{name}{end}" for name in free for end in (":", "."))
    if changed := [text for text in found_others if not text.startswith(beginnings)]:
        changed.sort(key=lambda text: text.partition(":")[0].count("."))  # the broad ones first
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(
            f"ckpt=last must go on from a run of the same settings, got {found.parents[1]} with "
            f"others: {', '.join(changed[:_SHOWN])}{more}; name the file, ckpt={found}, to go on "
            "all the same"
        )
    log.info("going on from %s", found)
    return whole_checkpoint(found)


def command_to_resume(checkpoint: Path) -> str:
    """Return the command line that goes on from a checkpoint."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [override for override in overrides if not override.startswith("ckpt=")]
    return shlex.join(["python", sys.argv[0], *kept, f"ckpt={checkpoint}"])
