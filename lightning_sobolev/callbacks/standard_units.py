"""Train in standardized units with data in the user's own."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev.plugin import SobolevCallback
from lightning_sobolev.plugin.resolve import ahead_of_finders
from lightning_sobolev.standardization import Standardized
from lightning_sobolev.teachers import BatchTeacher, DirectionalTeacher

_HOOK = "on_after_batch_transfer"
Where = str | int | None


class StandardUnits(Callback):
    """Lets a LightningModule train, validate and test in standardized units.

    The module holds a :class:`~lightning_sobolev.Standardized` network. While ``fit``,
    ``validate`` and ``test`` run, the named parts of every batch are converted when they arrive,
    and the network takes and gives standardized units; loss, metrics, a
    :class:`~lightning_sobolev.BatchTeacher` and the terms of a
    :class:`~lightning_sobolev.SobolevCallback` all see the same ones. ``predict``, and every call
    outside of a trainer, is in the user's units. Parts that are not named stay as they are.

    Training equals that of the bare network on standardized data. It costs a few elementwise
    operations a batch. Teachers that answer from elsewhere than the batch know nothing of these
    units and are refused.

    Args:
        x: Key path of the inputs in the batch.
        y: Key path of the values.
        jacobian: Key path of first derivatives, ``[batch, *out, *in]``.
        hessian: Key path of second derivatives, ``[batch, *out, *in, *in]``.
        tangents: Key path of directions in input space.
        pushed: Key path of the derivatives along them.

    Raises:
        ValueError: If no part is named.
    """

    def __init__(
        self, x: Where = None, y: Where = None, jacobian: Where = None, hessian: Where = None,
        tangents: Where = None, pushed: Where = None,
    ) -> None:  # fmt: skip
        super().__init__()
        named = {"inputs": x, "targets": y, "jacobian": jacobian, "hessian": hessian}
        named |= {"tangents": tangents, "pushed": pushed}
        self._paths = {k: _paths.parse(path, k) for k, path in named.items() if path is not None}
        if not self._paths:
            raise ValueError("StandardUnits needs a key path for x, y or a derivative, got none")
        self._network: Standardized | None = None
        self._owner: Any = None
        self._earlier: Any = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            ahead_of_finders(trainer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._network is not None:  # validation within fit
            return
        _check_teachers(trainer)
        self._network = _only_one(pl_module)
        self._network.switch(to_standard_units=True)
        self._owner = _owner(trainer, pl_module)
        self._earlier = vars(self._owner).get(_HOOK)
        hook = getattr(self._owner, _HOOK)
        vars(self._owner)[_HOOK] = _Converting(hook, functools.partial(self._converted, hook))

    on_validation_start = on_test_start = on_fit_start

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._leave()

    def _converted(self, original: Any, batch: Any, dataloader_idx: int) -> Any:
        assert self._network is not None
        batch = original(batch, dataloader_idx)
        for name, path in self._paths.items():
            part = _paths.get(batch, path, f"StandardUnits({'.'.join(map(str, path))!r})")
            if not isinstance(part, Tensor) or not part.is_floating_point():
                raise ValueError(
                    f"StandardUnits: the {name} in the batch must be a floating-point tensor, "
                    f"got {_paths.describe(part)}"
                )
            batch = _paths.put(batch, path, getattr(self._network.units, name)(part))
        return batch

    def _leave(self) -> None:
        if self._network is None:
            return
        self._network.switch(to_standard_units=False)
        vars(self._owner).pop(_HOOK, None)
        if self._earlier is not None:
            vars(self._owner)[_HOOK] = self._earlier
        self._network, self._owner, self._earlier = None, None, None


class _Converting:
    """Stands in for a hook; copies and pickles as the method that it stands in for."""

    def __init__(self, hook: Callable[..., Any], converted: Callable[..., Any]) -> None:
        functools.update_wrapper(self, hook)
        self._hook, self._function = hook, converted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._hook, memo)  # bound to the copy of its owner

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _same, (self._hook,)


def _same(hook: Any) -> Any:
    return hook


def _only_one(module: nn.Module) -> Standardized:
    found = [part for part in module.modules() if isinstance(part, Standardized)]
    if len(found) != 1:
        raise ValueError(
            f"StandardUnits needs one Standardized network in {type(module).__name__}, "
            f"got {len(found)}; wrap it: Standardized(network, Standardizer.fit(x, y))"
        )
    return found[0]


def _owner(trainer: Trainer, module: LightningModule) -> Any:
    # Lightning calls the hook of a data module before the module's.
    data: Any = getattr(trainer, "datamodule", None)
    # By name: pytorch_lightning has classes of its own.
    inherited = f"DataHooks.{_HOOK}"
    is_own = data is not None and getattr(type(data), _HOOK).__qualname__ != inherited
    return data if is_own else module


def _check_teachers(trainer: Trainer) -> None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        teacher = getattr(callback, "teacher", None)
        if not isinstance(callback, SobolevCallback):
            continue
        if isinstance(teacher, DirectionalTeacher):
            known = teacher.kinds == ("tangents",) and teacher.order == 1
            got = f"{' and '.join(teacher.kinds)} of order {teacher.order}"
            require(known, "teacher", "one of tangents of order 1 with StandardUnits", got)
        elif not isinstance(teacher, BatchTeacher):
            raise ValueError(
                "StandardUnits converts what the batch holds, but a "
                f"{type(teacher).__name__} would be asked in standardized units and answer in its "
                "own; leave StandardUnits out, a Standardized network matches such a teacher in "
                "the user's units"
            )
