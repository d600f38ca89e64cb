"""Teachers trained here: proximal policy optimisation by stable-baselines3, the extra ``sb3``.

The learner is stable-baselines3's; the games, the network, checkpoints and the stored agent are
this package's. Only the modules that need the extra import it.
"""

from importlib.util import find_spec

from omegaconf import DictConfig

from lightning_sobolev.experiments.teach.settings import Limits, PPOSettings

__all__ = ["Limits", "PPOSettings", "train_teacher"]


def train_teacher(cfg: DictConfig) -> dict[str, float | str]:
    """Train a teacher as its configuration says; see ``conf/train_teacher.yaml``.

    Args:
        cfg: The composed configuration.

    Returns:
        The content of ``metrics.json``; empty where training stopped early and goes on later.

    Raises:
        ModuleNotFoundError: If stable-baselines3 is not installed.
    """
    if find_spec("stable_baselines3") is None:
        raise ModuleNotFoundError(
            "training a teacher needs stable-baselines3: pip install 'lightning-sobolev[sb3]'"
        )
    from lightning_sobolev.experiments.teach.training import run

    return run(cfg)
