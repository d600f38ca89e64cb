"""The library without its experiments: every module of it can be imported where nothing else is.

Packages of experiments are hidden in a process of its own, so that a machine that has them all says
what one sees that has the library's own dependencies alone.
"""

import pkgutil
import subprocess
import sys

import pytest

import lightning_sobolev

EXPERIMENTS = ("hydra", "omegaconf", "matplotlib", "pandas", "seaborn", "rich")
GAMES = ("gymnasium", "ale_py", "safetensors")
MODULES = [
    found.name
    for found in pkgutil.walk_packages(
        lightning_sobolev.__path__, "lightning_sobolev.", onerror=lambda _: None
    )
    if not found.name.startswith("lightning_sobolev.experiments")
]
IN_GAMES = ("lightning_sobolev.atari", "lightning_sobolev.policies")

IMPORT = """
import importlib, sys
from importlib.machinery import PathFinder

HIDDEN = set(sys.argv[1].split(","))

class Wall(PathFinder):
    # Not only imports: others ask for a spec or a version before they import a package.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        hidden = (context.name or "").replace("-", "_").removesuffix("_core") in HIDDEN
        return iter(()) if hidden else super().find_distributions(context)

sys.meta_path[sys.meta_path.index(PathFinder)] = Wall
for name in sys.argv[2].split(","):
    importlib.import_module(name)
found = HIDDEN & {name.split(".")[0] for name in sys.modules}
assert not found, found
"""


def imports(modules, hidden):
    command = [sys.executable, "-c", IMPORT, ",".join(hidden), ",".join(modules)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("modules", "hidden"),
    [
        ([name for name in MODULES if not name.startswith(IN_GAMES)], EXPERIMENTS + GAMES),
        ([name for name in MODULES if name.startswith(IN_GAMES)], EXPERIMENTS),
    ],
    ids=["without games", "games"],
)
def test_the_library_stands_alone(modules, hidden):
    assert len(modules) > 5
    done = imports(modules, hidden)
    assert done.returncode == 0, done.stderr


def test_the_wall_hides_what_is_installed():
    done = imports(["hydra.core"], EXPERIMENTS)
    assert "No module named 'hydra'" in done.stderr
