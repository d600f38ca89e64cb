"""One training of a teacher from its configuration: learn, keep checkpoints, store the agent."""

import logging
import secrets
import time
from dataclasses import asdict
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
from lightning_sobolev.experiments.run import train as single_run
from lightning_sobolev.experiments.run.checkpoints import (
    LAST,
    checkpoint_to_resume,
    command_to_resume,
)
from lightning_sobolev.experiments.run.conf import config_hash
from lightning_sobolev.experiments.run.curves import write_curves
from lightning_sobolev.experiments.teach import callback, checkpoints
from lightning_sobolev.experiments.teach.export import export_agent
from lightning_sobolev.experiments.teach.policy import build_learner, network_of, start_from
from lightning_sobolev.experiments.teach.vec_env import AtariVecEnv

log = logging.getLogger(__name__)

State = dict[str, Any]
INTERRUPTED, TIME_IS_UP = "interrupted", "time is up"

# What may be another one when a training goes on: how long, how and where it is gone on with.
_OF_A_PIECE = (
    *("n_timesteps", "train", "start", "stop_at", "max_minutes", "checkpoint_minutes"),
    *("log_every", "device", "precision", "export", "env.settings.num_envs"),
)


def train_teacher(cfg: DictConfig) -> single_run.Metrics:
    """Train, or go on, until the last step or a limit; then store the agent.

    Leaves in ``cfg.run_dir``: ``checkpoints/last.ckpt``, ``curves.csv``, and at the end the agent
    with its card and ``metrics.json``, whose content it returns; nothing where training goes on
    later. ``conf/train_teacher.yaml`` says what ``cfg`` holds.
    """
    started = time.perf_counter()
    cfg = _checked(cfg)
    with single_run.alone_in(Path(cfg.run_dir)):
        metrics = _train_and_export(cfg, Path(cfg.run_dir))
        if metrics:
            seconds = time.perf_counter() - started
            metrics |= {"seconds_total": seconds, "config_hash": config_hash(cfg)}
            single_run.write_metrics(Path(cfg.run_dir), metrics)
    return metrics


def _train_and_export(cfg: DictConfig, folder: Path) -> single_run.Metrics:
    ckpt = checkpoint_to_resume(cfg, free=_OF_A_PIECE)
    (folder / single_run.METRICS).unlink(missing_ok=True)  # an earlier run's
    state: State = {"pieces": [], "rows": [], "seconds": 0.0, "num_timesteps": 0}
    state |= checkpoints.load_checkpoint(ckpt) if ckpt else {}
    settings: AtariSettings = instantiate(cfg.env.settings)
    _check_games("ckpt", state.get("environment"), settings)
    learner = _learner(cfg, settings, state)
    reason = _learn(cfg, settings, learner, state) if cfg.train else None
    if reason in (INTERRUPTED, TIME_IS_UP):
        again = command_to_resume(folder / LAST)
        log.warning("%s at step %d; to go on: %s", reason, learner.num_timesteps, again)
        if reason == INTERRUPTED:
            raise SystemExit(1)
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
        cfg.progress = True  # on a terminal
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
    steps = state["num_timesteps"]
    # new games after every interruption, not those of the beginning once more
    seed = int(np.random.SeedSequence((cfg.seed, steps)).generate_state(1)[0])
    games = Environments(settings, seed, num_threads=cfg.threads or 0)
    env = AtariVecEnv(games, life_ends=cfg.life_ends)
    learner = build_learner(cfg.ppo, env, cfg.seed, device=cfg.device, precision=cfg.precision)
    start = {}
    if "policy" in state:
        checkpoints.restore(learner, state)
    elif cfg.start is not None:
        start = _start(learner, cfg.start, settings)
    if cfg.train:
        piece = {name: cfg[name] for name in ("n_timesteps", "seed", "life_ends", "precision")}
        piece |= {"first_step": steps, "num_envs": settings.num_envs, **start, **cfg.ppo}
        state["pieces"].append(piece)
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
    folder, steps, earlier = Path(cfg.run_dir), learner.num_timesteps, state["seconds"]
    curves = callback.Curves(single_run.build_loggers(cfg), state["rows"], earlier)
    learner.set_logger(Logger(None, [curves]))
    reason = None

    def save() -> None:
        state.update(seconds=curves.seconds, rows=curves.rows, environment=asdict(settings))
        kept = ("environment", "pieces", "seconds", "rows")
        checkpoints.save_checkpoint(folder / LAST, learner, {name: state[name] for name in kept})
        write_curves(folder, curves.rows)

    def why_stop() -> str | None:
        return INTERRUPTED if interrupts else _limit(cfg, learner, curves.seconds - earlier)

    title = f"training on {settings.game}"
    with (
        callback.interruptible() as interrupts,
        progress_bar(title, cfg.n_timesteps, completed=steps, enabled=cfg.progress) as advance,
    ):
        try:
            learner.learn(
                max(cfg.n_timesteps - steps, 0),
                callback=callback.BetweenUpdates(save, why_stop, advance, cfg.checkpoint_minutes),
                log_interval=cfg.log_every,
                reset_num_timesteps=False,
            )
        except callback.StopLearning as stop:
            reason = str(stop)
        save()
        curves.close()
        # also if that was in the last update, behind which nobody asks
        return INTERRUPTED if interrupts else reason


def _limit(cfg: DictConfig, learner: PPO, seconds: float) -> str | None:
    if cfg.max_minutes is not None and seconds > 60 * cfg.max_minutes:
        return TIME_IS_UP
    settled = len(learner.ep_info_buffer or ()) == cfg.ppo.stats_window_size
    enough = cfg.stop_at is not None and settled and callback.mean_return(learner) >= cfg.stop_at
    return "the return is enough" if enough else None


def _export(
    cfg: DictConfig, settings: AtariSettings, learner: PPO, state: State
) -> single_run.Metrics:
    torch.set_num_threads(1)  # a few states at a time: more threads only wait for each other
    trained = {
        "algorithm": "proximal policy optimisation of stable-baselines3; the critic is left out",
        "steps": learner.num_timesteps,
        "seconds": round(state["seconds"]),
        "rewards": "clipped to their sign",
        "pieces": state["pieces"],
    }
    about = {"same_actions": OmegaConf.to_container(cfg.env.same_actions), "trained": trained}
    network = network_of(learner.policy)
    card = export_agent(network, settings, about, **cfg.export, progress=cfg.progress)
    log.info("agent: %s; to teach with it: teacher.agent=%s", cfg.export.path, cfg.export.path)
    metrics = {"seed": cfg.seed, "steps": learner.num_timesteps, "seconds_fit": state["seconds"]}
    for kind, ending in (("sampled", ""), ("greedy", "_greedy")):
        mean, error = (card["returns"][kind][name] for name in ("mean", "standard_error"))
        log.info("return, %s actions: %s +- %s", kind, mean, error)
        metrics[f"test/teacher_return{ending}"] = mean
        metrics[f"test/teacher_return{ending}_standard_error"] = error
    return metrics
