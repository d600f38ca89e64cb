"""Modules that nobody here wrote, unchanged: the gradient of the term against differences.

Their packages live in an environment of their own: ``make third-party`` makes and runs it.
"""

import pytest
import torch
from torch.testing import assert_close

from tests.plugin._gradients import TERMS, compare
from tests.third_party._modules import COMPUTE_IN_SINGLE, MODULES, PIECEWISE_LINEAR

pytestmark = [
    pytest.mark.third_party,
    pytest.mark.filterwarnings("ignore"),  # their own
]


PAIRS = [
    (name, kind)
    for name in MODULES
    for kind in TERMS
    if not (kind == "order 2" and name.startswith(PIECEWISE_LINEAR))
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_published_module_is_taught_as_it_is(name, kind, deviation):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        case = MODULES[name]()
    # Finer steps would drown in the rounding of float32.
    step, close = (2e-3, 1e-2) if name.startswith(COMPUTE_IN_SINGLE) else (1e-6, 1e-5)
    found, expected = compare(case, TERMS[kind], step=step)
    deviation("published", name, found=found, expected=expected)
    assert_close(found, expected, rtol=close, atol=close / 100)
    assert expected.abs().max() > 1e-6
