import importlib
import pkgutil
import subprocess
import sys

import pytest

import lightning_sobolev

# Modules that run a program when they are imported have no names of their own.
MODULES = [
    found.name
    for found in pkgutil.walk_packages(lightning_sobolev.__path__, "lightning_sobolev.")
    if not found.name.endswith("__main__")
]
PACKAGES = [name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]

LOOK = """
import torch, lightning.pytorch, torch.utils.data
def state():
    places = (torch.Tensor, torch.nn.Module, torch.nn.functional, lightning.pytorch.Trainer,
              lightning.pytorch.LightningModule, lightning.pytorch.Callback, torch.autograd)
    values = [torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
              torch.backends.cudnn.enabled, torch.are_deterministic_algorithms_enabled()]
    return [{name: id(vars(place)[name]) for name in vars(place)} for place in places], values
before = state()
import lightning_sobolev
import lightning_sobolev.functional, lightning_sobolev.metrics, lightning_sobolev.atari
import lightning_sobolev.policies
after = state()
assert before == after, "importing changed torch or lightning"
"""


def test_the_public_names():
    public = {name for name in vars(lightning_sobolev) if not name.startswith("_")}
    modules = {name.split(".")[1] for name in MODULES}
    assert public - modules == set(lightning_sobolev.__all__) - {"__version__"}
    assert lightning_sobolev.__all__ == sorted(lightning_sobolev.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_in_all_exists(name):
    package = importlib.import_module(name)
    for public in getattr(package, "__all__", []):
        assert hasattr(package, public), f"{name}.{public}"


def test_importing_changes_nothing():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
