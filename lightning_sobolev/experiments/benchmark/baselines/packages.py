"""The packages: JENN, and SMT's kriging without and with gradients (extra ``bench``)."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""Maps ``[points, dim]`` to ``[points]``."""
Table = dict[str, Tensor]


def fit_jenn(table: Table, seed: int, budget: float) -> Predict:
    """Fit JENN's network of 12 x 12 tanh units to values and gradients, with its own settings.

    SMT's GENN is the same code.

    Args:
        table: Points with values and gradients.
        seed: Of its first weights.
        budget: Not used: it ends when it ends.

    Returns:
        The prediction.
    """
    del budget
    x, y, dydx = (table[name].numpy() for name in ("x", "y", "dydx"))
    network = _package("jenn").NeuralNet([x.shape[1], 12, 12, 1])
    network.fit(x.T, y[None], dydx.T[None], random_state=seed)
    return lambda at: torch.from_numpy(np.asarray(network.predict(at.numpy().T))[0])


def fit_kriging(table: Table, seed: int, budget: float) -> Predict:
    """Fit ordinary kriging (SMT's KRG, its own settings) to the values.

    Args:
        table: Points with values.
        seed: Of its search.
        budget: Not used.

    Returns:
        The prediction.
    """
    del budget
    model = _package("smt.surrogate_models").KRG(print_global=False, seed=seed)
    return _fit(model, table)


def fit_gradient_kriging(table: Table, seed: int, budget: float) -> Predict:
    """Fit gradient-enhanced kriging with partial least squares (SMT's GEKPLS).

    With one extra point along the leading component for every training point; two components.

    Args:
        table: Points with values and gradients.
        seed: Of its search.
        budget: Not used.

    Returns:
        The prediction.
    """
    del budget
    x = table["x"].numpy()
    limits = np.stack([x.min(0), x.max(0)], 1)
    settings = {"xlimits": limits, "extra_points": 1, "n_comp": min(2, x.shape[1])}
    model = _package("smt.surrogate_models").GEKPLS(print_global=False, seed=seed, **settings)
    for index in range(x.shape[1]):
        model.set_training_derivatives(x, table["dydx"][:, index].numpy()[:, None], index)
    return _fit(model, table)


def _fit(model: Any, table: Table) -> Predict:
    model.set_training_values(table["x"].numpy(), table["y"].numpy()[:, None])
    model.train()
    return lambda at: torch.from_numpy(model.predict_values(at.numpy())[:, 0])


def _package(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra 'bench'") from error
