"""One training of a teacher from its configuration: learn, keep checkpoints, store the agent."""

import logging
import secrets
import sys
import time
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
from lightning_sobolev.atari.agents.cards import Card, load_agent
from lightning_sobolev.atari.environments import AtariSettings, Environments
from lightning_sobolev.atari.networks import NatureCNN
from lightning_sobolev.experiments.run.finished import write_metrics
from lightning_sobolev.experiments.run.resuming import LAST, checkpoint_to_resume, command_to_resume
from lightning_sobolev.experiments.run.train import build_loggers, config_hash
from lightning_sobolev.experiments.teach.checkpoints import load_checkpoint, restore
from lightning_sobolev.experiments.teach.export import export_agent
from lightning_sobolev.experiments.teach.features import network_of, start_from
from lightning_sobolev.experiments.teach.games import Games
from lightning_sobolev.experiments.teach.keeper import Keeper
from lightning_sobolev.experiments.teach.learner import build_learner
from lightning_sobolev.experiments.teach.logs import TrainingLog
from lightning_sobolev.experiments.teach.settings import PPOSettings
from lightning_sobolev.experiments.teach.stopping import interruptible

log = logging.getLogger(__name__)

State = dict[str, Any]


def run(cfg: DictConfig) -> dict[str, float | str]:
    """Train, or go on, until the last step or a limit; then store the agent.

    Leaves in ``cfg.run_dir``: ``checkpoints/last.ckpt``, ``curves.csv``, and at the end the agent
    with its card and ``metrics.json``.

    Args:
        cfg: The composed configuration, see ``conf/train_teacher.yaml``.

    Returns:
        The content of ``metrics.json``; empty where training goes on later.

    Raises:
        ValueError: If no game was chosen or the checkpoint does not fit.
        SystemExit: If somebody interrupted it, when everything is saved.
    """
    started = time.perf_counter()
    cfg = _decided(cfg)
    folder = Path(cfg.run_dir)
    ckpt = checkpoint_to_resume(cfg.ckpt, folder)
    state = load_checkpoint(ckpt) if ckpt is not None else {}
    settings, learner = _learner(cfg, state)
    state.setdefault("seconds", 0.0)
    if cfg.train:
        stopped_by = _learn(cfg, settings, learner, state)
        again = command_to_resume(folder / LAST)
        if stopped_by == "interrupted":
            log.warning("interrupted at step %d; to go on: %s", learner.num_timesteps, again)
            raise SystemExit(1)
        if stopped_by == "max_minutes":
            log.info("time is up at step %d; to go on: %s", learner.num_timesteps, again)
            return {}
    metrics = _export(cfg, settings, learner, state)
    metrics |= {"seconds_total": time.perf_counter() - started, "config_hash": config_hash(cfg)}
    write_metrics(folder, metrics)
    return metrics


def _decided(cfg: DictConfig) -> DictConfig:
    if cfg.get("env") is None:
        raise ValueError(
            "a game must be chosen, e.g. +teacher_training=ppo_pong (with the plus), got none"
        )
    if not cfg.train and cfg.ckpt is None:
        raise ValueError("ckpt must name a checkpoint where train=false, got null")
    cfg = cfg.copy()
    if cfg.seed is None:
        cfg.seed = secrets.randbelow(2**31)
    if cfg.progress is None:
        cfg.progress = sys.stderr.isatty()
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    return cfg


def _learner(cfg: DictConfig, state: State) -> tuple[AtariSettings, PPO]:
    settings: AtariSettings = instantiate(cfg.env.settings)
    _check_games("ckpt", state.get("environment"), settings)
    ppo: PPOSettings = instantiate(cfg.ppo)
    steps = state.get("num_timesteps", 0)
    # new games after every interruption, not those of the beginning once more
    seed = int(np.random.SeedSequence((cfg.seed, steps)).generate_state(1)[0])
    environments = Environments(settings, seed, num_threads=cfg.threads or 0)
    games = Games(environments, life_ends=ppo.life_ends)
    learner = build_learner(ppo, games, seed=cfg.seed, device=cfg.device)
    if state:
        restore(learner, state)
    start = {} if state or cfg.start is None else _start(learner, cfg.start, settings)
    piece = {
        "first_step": steps,
        **start,
        "n_timesteps": cfg.n_timesteps,
        "num_envs": settings.num_envs,
        "seed": cfg.seed,
        **asdict(ppo),
    }
    state["pieces"] = [*state.get("pieces", []), *([piece] if cfg.train else [])]
    return settings, learner


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


def _check_games(name: str, found: State | None, settings: AtariSettings) -> None:
    ours = asdict(settings)
    theirs = ours if found is None else found
    different = [key for key in ours if key != "num_envs" and ours[key] != theirs.get(key)]
    if different:
        got = ", ".join(f"{key}={theirs.get(key)!r}" for key in different)
        wanted = ", ".join(f"{key}={ours[key]!r}" for key in different)
        raise ValueError(f"{name} must be of a training with {wanted}, got {got}")


def _learn(cfg: DictConfig, settings: AtariSettings, learner: PPO, state: State) -> str | None:
    folder = Path(cfg.run_dir)
    record = TrainingLog(folder, build_loggers(cfg), state.get("rows", ()), state["seconds"])
    learner.set_logger(Logger(None, [record]))
    steps = learner.num_timesteps
    name = f"training on {settings.game}"
    with (
        progress_bar(name, cfg.n_timesteps, completed=steps, enabled=cfg.progress) as advance,
        interruptible() as is_interrupted,
    ):
        keeper = Keeper(
            folder / LAST,
            minutes=cfg.checkpoint_minutes,
            limits=instantiate(cfg.limits),
            record=record,
            about={"environment": asdict(settings), "pieces": state["pieces"]},
            advance=advance,
            is_interrupted=is_interrupted,
        )
        learner.learn(
            max(cfg.n_timesteps - steps, 0),
            callback=keeper,
            log_interval=cfg.log_every,
            reset_num_timesteps=False,
        )
    record.close()
    state["seconds"] = record.seconds
    return keeper.stopped_by


def _export(
    cfg: DictConfig, settings: AtariSettings, learner: PPO, state: State
) -> dict[str, float | str]:
    path = Path(cfg.export.path)
    trained = {
        "algorithm": "proximal policy optimisation of stable-baselines3; the critic is left out",
        "steps": learner.num_timesteps,
        "seconds": round(state["seconds"]),
        "rewards": "clipped to their sign",
        "pieces": state["pieces"],
    }
    same_actions = OmegaConf.to_container(cfg.env.same_actions)
    card = export_agent(
        path,
        network_of(learner.policy),
        # an agent is named by the games that it plays, however many played side by side
        replace(settings, num_envs=cfg.export.num_envs),
        {"same_actions": same_actions, "trained": trained},
        num_episodes=cfg.export.num_episodes,
        seed=cfg.export.seed,
        progress=cfg.progress,
    )
    log.info("agent: %s; to teach with it: teacher.agent=%s", path, path)
    return {
        "seed": cfg.seed,
        "steps": learner.num_timesteps,
        "seconds_fit": state["seconds"],
        **_returns(card, cfg.export.num_episodes),
    }


def _returns(card: Card, num_episodes: int) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for way, ending in (("sampled", ""), ("greedy", "_greedy")):
        mean, error = (card["returns"][way][name] for name in ("mean", "standard_error"))
        log.info("return of %d games, %s actions: %s +- %s", num_episodes, way, mean, error)
        numbers[f"test/teacher_return{ending}"] = mean
        numbers[f"test/teacher_return{ending}_standard_error"] = error
    return numbers
