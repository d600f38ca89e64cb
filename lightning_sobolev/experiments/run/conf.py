"""Configurations: where they are, what a run's was, and whether two of them ask for the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

_PACKAGE = Path(__file__).resolve().parents[2]

STORED = Path(".hydra") / "config.yaml"
# Where a run lies and how it is watched do not change its numbers.
BYSTANDERS = ("run_dir", "ckpt", "pictures", "progress", "logger", "threads")


def config_folder() -> Path:
    """Return the folder of ``train.yaml``: in the package's wheel, or at the top of a checkout."""
    for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"conf/train.yaml must lie in {_PACKAGE} or {_PACKAGE.parent}, got neither: reinstall"
    )


def read_config(folder: Path) -> DictConfig | None:
    """Read the configuration of a run."""
    path = folder / STORED
    if not path.is_file():
        return None
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} must hold the configuration of a run: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{path} must hold the configuration of a run, got {type(cfg).__name__}")
    return cfg


def config_hash(cfg: DictConfig) -> str:
    """Return a short hash of everything that decides the result, seed included."""
    text = json.dumps(_deciding(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(one: DictConfig, other: DictConfig) -> list[str]:
    """Say in which settings two configurations differ, among those that decide the result."""
    first, second = _flat(_deciding(one)), _flat(_deciding(other))
    is_drawn = "seed" in first and None in (one.get("seed"), other.get("seed"))
    return [
        f"{key}: {first.get(key, 'nothing')}, not {second.get(key, 'nothing')}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key, "nothing") != second.get(key, "nothing")
        and not (is_drawn and key.rsplit(".", 1)[-1] == "seed")
    ]


def _deciding(cfg: DictConfig) -> Any:
    bare = cfg.copy()
    with open_dict(bare):
        for key in BYSTANDERS:
            bare[key] = "" if key == "run_dir" else None
    return OmegaConf.to_container(bare, resolve=True)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {prefix.removeprefix("."): content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}")
    return flat
