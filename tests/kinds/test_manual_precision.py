"""Mixed precision under manual optimization: the term's gradient is the automatic step's."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.testing import assert_close

from tests.kinds import _manual as steps
from tests.kinds import _reference as reference
from tests.kinds._measure import (
    WAYS,
    Spy,
    Step,
    Way,
    assert_parts,
    assert_updates,
    batch,
    single,
    sobolev,
    target,
    update,
)
from tests.plugin._trainers import fit_one_step

X = batch()[0]
BFLOAT = {name: way for name, way in WAYS.items() if way.precision == "bf16-mixed"}
BFLOAT["rows"] = Way(rows=0.5, precision="bf16-mixed")
BFLOAT["func"] = Way(precision="bf16-mixed", options={"engine": "func"})
ways = pytest.mark.parametrize("way", BFLOAT.values(), ids=BFLOAT)


@ways
def test_one_pass_in_bfloat16_has_the_term_of_an_automatic_step(way):
    assert_parts(Step, way, [X])
    assert_parts(steps.Manual, way, [X])


@ways
@pytest.mark.parametrize("call", ["first", "all"])
def test_parts_of_a_batch_in_bfloat16_have_theirs(call, way):
    assert_parts(steps.MicroBatches, way, list(X.chunk(3)), call=call)
    scaled = {"factor": 1 / 3, "manual_scale": 1 / 3}
    assert_parts(steps.Averaged, way, list(X.chunk(3)), call=call, **scaled)


@ways
@pytest.mark.parametrize("call", [0, 1])
def test_a_chosen_pass_in_bfloat16_has_its_term(call, way):
    assert_parts(steps.OneByOne, way, [(X, 3.0 * X)[call]], call=call)


@pytest.mark.parametrize("inner", ["float32", "step", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["vjp", "jvp", "order_2"])
def test_the_inner_precision_means_the_same_in_both(kind, inner):
    found = []
    for make in (Step, steps.Manual):
        way = Way(kind, precision="bf16-mixed", options={"inner_precision": inner})
        found.append(update(make, batch, sobolev(way, Spy()), precision=way.precision))
    assert_updates(*found, rtol=1e-5)
    module = Step().float().double()
    expected = reference.gradient(reference.term(kind, module.net, target, X), module)
    largest = max(float(g.abs().max()) for g in expected.values())
    rough = 1e-4 if inner == "float32" else 0.1
    assert_close(found[1], expected, rtol=rough, atol=rough * largest)


def scaled(make, device, *callbacks):
    """Fit one step in float16 with a scaler of the gradients; return how far it went."""
    module = make().float()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    plugin = MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=64.0))
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
    fit_one_step(
        module, single(batch()), *callbacks, plugins=[plugin], precision=None,
        accelerator=accelerator,
    )  # fmt: skip
    return {name: before[name] - p.detach().cpu() for name, p in module.named_parameters()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("make", "factor", "options"),
    [
        (Step, 1.0, {}),
        (steps.Manual, 1.0, {}),
        (steps.MicroBatches, 3.0, {}),
        (steps.Averaged, 1.0, {"manual_scale": 1 / 3}),
    ],
)
def test_the_scaler_of_float16_scales_the_term_with_the_loss(make, factor, options, device):
    taught = scaled(make, device, sobolev(Way(), Spy(), **options))
    plain = scaled(make, device)
    found = {name: (taught[name] - plain[name]).double() for name in plain}
    module = make().float().double()
    value = factor * reference.term("vjp", module.net, target, X)
    assert_updates(found, reference.gradient(value, module), 1e-4)
    assert all(bool(step.abs().max() > 0.0) for step in plain.values())
