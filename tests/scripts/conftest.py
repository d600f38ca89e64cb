import logging
import signal
import warnings

import pytest
import torch
from hydra import compose, initialize_config_dir

from lightning_sobolev._conf import config_folder


@pytest.fixture
def composed(tmp_path):
    """Compose the configuration of a run whose folder is new."""

    def compose_run(*overrides, name="run"):
        places = [f"run_dir={tmp_path / 'runs' / name}", "progress=false", "logger=none"]
        if "+experiment=distill_pong" in overrides:
            places.append(f"data.root={tmp_path / 'recordings'}")
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose("train", [*overrides, *places])

    return compose_run


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    """Single precision, and nothing that a run changes in the process is left behind."""
    dtype, level = torch.get_default_dtype(), logging.getLogger("lightning.pytorch").level
    handler = signal.getsignal(signal.SIGINT)
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        yield
    torch.set_default_dtype(dtype)
    logging.getLogger("lightning.pytorch").setLevel(level)
    signal.signal(signal.SIGINT, handler)
