"""What an instance carries beside its class."""


def attributes(module):
    """Everything on the instance but what Lightning itself adds."""
    return {k: v for k, v in vars(module).items() if k not in ("_hparams", "_trainer")}


def assert_unchanged(module, before):
    after = attributes(module)
    assert set(after) == set(before)
    assert all(after[key] is before[key] for key in after if key.startswith("__") or "step" in key)
    for part in module.modules():
        assert "forward" not in vars(part)
        assert not part._forward_hooks
    assert module.training_step.__func__ is type(module).training_step
