"""Teachers trained here: stable-baselines3's PPO over this package's games, network and files."""

from importlib.util import find_spec

if find_spec("stable_baselines3") is None:
    raise ModuleNotFoundError(
        "training a teacher needs stable-baselines3: pip install 'lightning-sobolev[sb3]'"
    )
