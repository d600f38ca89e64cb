"""All that training may leave behind: on a module, its parameters, and in torch itself."""

import warnings

import torch
from torch import nn

LIGHTNINGS = ("_trainer", "_hparams", "_fabric", "_fabric_optimizers", "trainer")
HOOKS = [key for key in vars(nn.Module()) if "hooks" in key]


def state(module):
    """Return what is on every part of a module, by identity, and how torch is set."""
    return {"torch": torch_settings(), **{n: of_part(p) for n, p in module.named_modules()}}


def of_part(part):
    kept = {key: value for key, value in vars(part).items() if key not in LIGHTNINGS}
    hooks = {key: [(k, id(h)) for k, h in kept.pop(key).items()] for key in HOOKS}
    held = {key: kept.pop(key) for key in ("_parameters", "_buffers", "_modules")}
    return {
        "training": kept.pop("training"),
        "own": {key: id(value) for key, value in kept.items() if is_code(key, value)},
        "names": list(kept),
        "held": {key: {name: id(v) for name, v in value.items()} for key, value in held.items()},
        "hooks": hooks,
        "gradients": [
            (name, p.requires_grad, list(p._backward_hooks or ()))
            for name, p in held["_parameters"].items()
            if p is not None
        ],
    }


def is_code(key, value):
    return callable(value) or key.startswith("__")


def torch_settings():
    backends = torch.backends
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.deterministic, backends.cudnn.benchmark),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ),
        "mkldnn": backends.mkldnn.enabled,
        "modes": (
            torch.overrides._len_torch_function_stack(),
            torch.utils._python_dispatch._len_torch_dispatch_stack(),
        ),
        "hooks": (
            len(nn.modules.module._global_forward_hooks),
            len(nn.modules.module._global_forward_pre_hooks),
            len(nn.modules.module._global_backward_hooks),
        ),
        "linear": nn.Linear.forward,
        "call": nn.Module.__call__,
        "warnings": len(warnings.filters),
    }
