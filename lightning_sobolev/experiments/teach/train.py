"""One training of a teacher from its configuration: learn, keep checkpoints, store the agent."""

import logging
import secrets
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

from lightning_sobolev._progress import progress_bar
from lightning_sobolev.atari.agents.cards import load_agent
from lightning_sobolev.atari.environments import AtariSettings, Environments
from lightning_sobolev.atari.networks import NatureCNN
from lightning_sobolev.experiments.run.checkpoints import (
    LAST,
    checkpoint_to_resume,
    command_to_resume,
)
from lightning_sobolev.experiments.run.conf import config_hash
from lightning_sobolev.experiments.run.curves import write_curves
from lightning_sobolev.experiments.run.train import (
    METRICS,
    Metrics,
    alone_in,
    build_loggers,
    write_metrics,
)
from lightning_sobolev.experiments.teach.callback import (
    BetweenUpdates,
    Curves,
    StopLearning,
    interruptible,
    mean_return,
)
from lightning_sobolev.experiments.teach.checkpoints import (
    load_checkpoint,
    restore,
    save_checkpoint,
)
from lightning_sobolev.experiments.teach.export import export_agent
from lightning_sobolev.experiments.teach.policy import build_learner, network_of, start_from
from lightning_sobolev.experiments.teach.vec_env import AtariVecEnv

log = logging.getLogger(__name__)

State = dict[str, Any]

# What may be another one when a training goes on: how long, how and where it is gone on with.
_OF_A_PIECE = (
    *("n_timesteps", "train", "start", "stop_at", "max_minutes", "checkpoint_minutes"),
    *("log_every", "device", "precision", "export", "env.settings.num_envs"),
)


def train_teacher(cfg: DictConfig) -> Metrics:
    """Train, or go on, until the last step or a limit; then store the agent.

    Leaves in ``cfg.run_dir``: ``checkpoints/last.ckpt``, ``curves.csv``, and at the end the agent
    with its card and ``metrics.json``.

    Args:
        cfg: The composed configuration, see ``conf/train_teacher.yaml``.

    Returns:
        The content of ``metrics.json``; empty where training goes on later.

    Raises:
        SystemExit: If somebody interrupted it, when everything is saved.
        ValueError: If a setting or the checkpoint is not what it must be; the error says which.
    """
    started = time.perf_counter()
    cfg = _checked(cfg)
    with alone_in(Path(cfg.run_dir)):
        metrics = _train_and_export(cfg, Path(cfg.run_dir))
        if metrics:
            seconds = time.perf_counter() - started
            metrics |= {"seconds_total": seconds, "config_hash": config_hash(cfg)}
            write_metrics(Path(cfg.run_dir), metrics)
    return metrics


def _train_and_export(cfg: DictConfig, folder: Path) -> Metrics:
    ckpt = checkpoint_to_resume(cfg, free=_OF_A_PIECE)
    (folder / METRICS).unlink(missing_ok=True)  # an earlier run's
    state: State = {"pieces": [], "rows": [], "seconds": 0.0, "num_timesteps": 0}
    if ckpt is not None:
        state |= load_checkpoint(ckpt)
    settings: AtariSettings = instantiate(cfg.env.settings)
    _check_games("ckpt", state.get("environment"), settings)
    learner = _learner(cfg, settings, state)
    if cfg.train:
        stopped_by = _learn(cfg, settings, learner, state)
        again = command_to_resume(folder / LAST)
        if stopped_by == "interrupted":
            log.warning("interrupted at step %d; to go on: %s", learner.num_timesteps, again)
            raise SystemExit(1)
        if stopped_by == "max_minutes":
            log.info("time is up at step %d; to go on: %s", learner.num_timesteps, again)
            return {}
    return _export(cfg, settings, learner, state)


def _checked(cfg: DictConfig) -> DictConfig:
    if cfg.get("env") is None:
        raise ValueError(
            "a game must be chosen, e.g. +teacher_training=ppo_pong (with the plus), got none"
        )
    if not cfg.train and cfg.ckpt is None:
        raise ValueError("ckpt must name a checkpoint where train=false, got null")
    if cfg.max_minutes is not None and not cfg.max_minutes > 0:
        raise ValueError(f"max_minutes must be positive or null, got {cfg.max_minutes}")
    cfg = cfg.copy()
    if cfg.seed is None:
        cfg.seed = secrets.randbelow(2**31)
    if cfg.progress is None:
        cfg.progress = sys.stderr.isatty()
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    return cfg


def _check_games(name: str, found: State | None, settings: AtariSettings) -> None:
    ours = asdict(settings)
    theirs = ours if found is None else found
    different = [key for key in ours if key != "num_envs" and ours[key] != theirs.get(key)]
    if different:
        got = ", ".join(f"{key}={theirs.get(key)!r}" for key in different)
        wanted = ", ".join(f"{key}={ours[key]!r}" for key in different)
        raise ValueError(f"{name} must be of a training with {wanted}, got {got}")


def _learner(cfg: DictConfig, settings: AtariSettings, state: State) -> PPO:
    """Build the learner where the state says, and note in it what this run trains with."""
    steps = state["num_timesteps"]
    # new games after every interruption, not those of the beginning once more
    seed = int(np.random.SeedSequence((cfg.seed, steps)).generate_state(1)[0])
    environments = Environments(settings, seed, num_threads=cfg.threads or 0)
    learner = build_learner(
        cfg.ppo,
        AtariVecEnv(environments, life_ends=cfg.life_ends),
        seed=cfg.seed,
        device=cfg.device,
        precision=cfg.precision,
    )
    start = {}
    if "policy" in state:
        restore(learner, state)
    elif cfg.start is not None:
        start = _start(learner, cfg.start, settings)
    piece = {name: cfg[name] for name in ("n_timesteps", "seed", "life_ends", "precision")}
    piece |= {"first_step": steps, "num_envs": settings.num_envs, **start, **cfg.ppo}
    if cfg.train:
        state["pieces"] = [*state["pieces"], piece]
    return learner


def _start(learner: PPO, agent: str, settings: AtariSettings) -> dict[str, str]:
    network, card = load_agent(agent)
    if not isinstance(network, NatureCNN) or "environment" not in card:
        raise ValueError(
            "start must be a stored NatureCNN with a card that names its games, got "
            f"{type(network).__name__} from {agent}"
        )
    _check_games("start", asdict(AtariSettings(**card["environment"])), settings)
    start_from(learner.policy, network)
    return {"start": Path(agent).stem, "start_sha256": card["sha256"]}


def _learn(cfg: DictConfig, settings: AtariSettings, learner: PPO, state: State) -> str | None:
    """Learn and save; returns why it stopped before its last step, if it did."""
    folder, steps = Path(cfg.run_dir), learner.num_timesteps
    curves = Curves(build_loggers(cfg), state["rows"], state["seconds"])
    learner.set_logger(Logger(None, [curves]))

    def save() -> None:
        state.update(seconds=curves.seconds, rows=curves.rows, environment=asdict(settings))
        kept = ("environment", "pieces", "seconds", "rows")
        save_checkpoint(folder / LAST, learner, {name: state[name] for name in kept})
        write_curves(folder, curves.rows)

    name = f"training on {settings.game}"
    with (
        interruptible() as is_interrupted,
        progress_bar(name, cfg.n_timesteps, completed=steps, enabled=cfg.progress) as advance,
    ):
        between = BetweenUpdates(
            save,
            lambda: "interrupted" if is_interrupted() else _limit(cfg, learner, curves),
            advance,
            minutes=cfg.checkpoint_minutes,
        )
        with suppress(StopLearning):
            learner.learn(
                max(cfg.n_timesteps - steps, 0),
                callback=between,
                log_interval=cfg.log_every,
                reset_num_timesteps=False,
            )
        save()
        curves.close()
        # also if that was in the last update, behind which nobody asks
        return "interrupted" if is_interrupted() else between.stopped_by


def _limit(cfg: DictConfig, learner: PPO, curves: Curves) -> str | None:
    if cfg.max_minutes is not None and curves.seconds_of_run > 60 * cfg.max_minutes:
        return "max_minutes"
    is_settled = len(learner.ep_info_buffer or ()) == cfg.ppo.stats_window_size
    is_enough = cfg.stop_at is not None and is_settled and mean_return(learner) >= cfg.stop_at
    return "stop_at" if is_enough else None


def _export(cfg: DictConfig, settings: AtariSettings, learner: PPO, state: State) -> Metrics:
    torch.set_num_threads(1)  # a few states at a time: more threads only wait for each other
    trained = {
        "algorithm": "proximal policy optimisation of stable-baselines3; the critic is left out",
        "steps": learner.num_timesteps,
        "seconds": round(state["seconds"]),
        "rewards": "clipped to their sign",
        "pieces": state["pieces"],
    }
    card = export_agent(
        Path(cfg.export.path),
        network_of(learner.policy),
        # an agent is named by the games that it plays, however many played side by side
        replace(settings, num_envs=cfg.export.num_envs),
        {"same_actions": OmegaConf.to_container(cfg.env.same_actions), "trained": trained},
        num_episodes=cfg.export.num_episodes,
        seed=cfg.export.seed,
        progress=cfg.progress,
    )
    log.info("agent: %s; to teach with it: teacher.agent=%s", cfg.export.path, cfg.export.path)
    metrics = {"seed": cfg.seed, "steps": learner.num_timesteps, "seconds_fit": state["seconds"]}
    for kind, ending in (("sampled", ""), ("greedy", "_greedy")):
        mean, error = (card["returns"][kind][name] for name in ("mean", "standard_error"))
        log.info("return, %s actions: %s +- %s", kind, mean, error)
        metrics[f"test/teacher_return{ending}"] = mean
        metrics[f"test/teacher_return{ending}_standard_error"] = error
    return metrics
