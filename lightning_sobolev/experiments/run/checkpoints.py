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
import torch
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


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt`` up to date: now and then, behind epochs, and when training breaks off.

    A file is replaced only by a complete one, never by weights that an exception left half updated,
    and never by weights that are not finite: Lightning's ``ModelCheckpoint`` saves both, and has no
    hook that could refuse. Being a ``Checkpoint``, it comes after all other callbacks, so what
    they store is as old as the weights.

    Args:
        folder: Where ``last.ckpt`` goes.
        every_n_steps: Steps between two saves.

    Raises:
        ValueError: If ``every_n_steps`` is below one.
        FloatingPointError: While training, if the weights that were to be saved are not finite.
        OSError: While training, if the file cannot be written; it names the step that stands.
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

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained module."""
        del pl_module
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save what training has come to, whatever ended it; its cause stays the error.

        Not with several processes: the others may be anywhere, or gone, and would be waited for.
        """
        is_new = trainer.global_step not in (0, self._saved_step)
        if trainer.state.fn != TrainerFn.FITTING or not is_new:
            return
        reason = None
        if trainer.world_size > 1:
            reason = "other processes may be anywhere"
        elif self._updating_step == trainer.global_step:
            reason = "its update was broken off"
        if reason is not None:
            log.warning("step %d is not saved (%s): %s", trainer.global_step, reason, self._last())
            return
        try:
            self._save(trainer)
        except (OSError, FloatingPointError) as error:
            log.warning("%s", error)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Forget a batch that was begun and broken off.

        Lightning counts it, and a resumed run would validate a step early for every one of them.
        """
        del trainer, pl_module
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["processed"]

    def _save(self, trainer: pl.Trainer) -> None:
        # Under gradient accumulation several batches end at the same step.
        step = trainer.global_step
        if step == self._saved_step:
            return
        if not trainer.strategy.reduce_boolean_decision(_is_finite(trainer.lightning_module)):
            raise FloatingPointError(
                f"the weights must be finite, got others at step {step}: {self._last()}"
            )
        try:
            self._write(trainer)
        except OSError as error:
            text = f"step {step} could not be saved ({error}): {self._last()}"
            raise OSError(error.errno, text) from error
        self._saved_step = step

    def _write(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path)  # all take part, the first process writes
            return
        with whole(self.path) as writing:
            trainer.save_checkpoint(writing)

    def _last(self) -> str:
        step = self._saved_step
        return f"{self.path} holds step {step}" if step >= 0 else "nothing was saved in this run"


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, the weights of the best validation; a resumed run goes on with it.

    Lightning forgets the scores of a run that is resumed in another folder. Here the file comes
    along and the scores stay.

    Args:
        folder: Where ``best.ckpt`` goes.
        monitor: The key of the score.
        mode: ``"min"`` or ``"max"``.
    """

    def __init__(self, folder: str | Path, monitor: str, mode: str = "min") -> None:
        super().__init__(
            folder,
            filename=BEST.stem,
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best weights so far, and their score."""
        earlier, here = Path(state_dict["best_model_path"]), Path(str(self.dirpath)) / BEST.name
        if earlier.is_file() and earlier != here:
            with whole(here) as writing:
                shutil.copyfile(earlier, writing)
        scores = state_dict["best_k_models"].values()
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(here) if state_dict["best_model_path"] else "",
                "kth_best_model_path": str(here) if state_dict["kth_best_model_path"] else "",
                "best_k_models": {str(here): score for score in scores},
            }
        )


def _is_finite(module: torch.nn.Module) -> bool:
    own = (p.to_local() if isinstance(p, DTensor) else p for p in module.parameters())
    return all(bool(p.isfinite().all()) for p in own)


def whole_checkpoint(path: Path) -> Path:
    """Check that a checkpoint was written to its end and is what was written.

    Costs one pass over the file.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch's format; every part has a checksum
            damaged = file.testzip()
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"ckpt must be a whole checkpoint, got {path}: {error}") from error
    if damaged is not None:
        raise ValueError(f"ckpt must be a whole checkpoint, got {path}: {damaged} is damaged")
    return path


def checkpoint_to_resume(cfg: DictConfig, free: Sequence[str] = ()) -> Path | None:
    """Find the checkpoint to go on from.

    Args:
        cfg: The composed configuration. ``ckpt`` is None, a path, or ``"last"``: this run's own if
            the folder is an earlier run's, else the newest beside it.
        free: Settings, or groups of them, that need not be the earlier run's.

    Raises:
        ValueError: If there is no such file, it is damaged, or with ``"last"`` it is of a run of
            other settings; the error names them.
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
        others = sorted(folder.parent.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
        if not others:
            raise ValueError(
                f"ckpt=last needs an earlier run's {LAST} below {folder.parent}, got none"
            )
        found = others[-1]
    earlier = read_config(found.parents[1])
    found_others = differences(earlier, cfg) if earlier is not None else []
    beginnings = tuple(f"{name}{end}" for name in free for end in (":", "."))
    if changed := [text for text in found_others if not text.startswith(beginnings)]:
        raise ValueError(
            f"ckpt=last must go on from a run of the same settings, got {found.parents[1]} with "
            f"others: {', '.join(changed)}; name the file, ckpt={found}, to go on all the same"
        )
    log.info("going on from %s", found)
    return whole_checkpoint(found)


def command_to_resume(checkpoint: Path) -> str:
    """Return the command line that goes on from a checkpoint."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [override for override in overrides if not override.startswith("ckpt=")]
    return shlex.join(["python", sys.argv[0], *kept, f"ckpt={checkpoint}"])
