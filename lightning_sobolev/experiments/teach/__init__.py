"""Teachers trained here: proximal policy optimisation by stable-baselines3, the extra ``sb3``.

The learner is stable-baselines3's; the games, the network, checkpoints and the stored agent are
this package's.
"""

from importlib.util import find_spec

if find_spec("stable_baselines3") is None:
    raise ModuleNotFoundError(
        "training a teacher needs stable-baselines3: pip install 'lightning-sobolev[sb3]'"
    )
