"""Parameter gradients of the term on modules that were not written for it.

Each is the weight change of one real training step against central differences of a value that
is computed without any double backward.
"""

import pytest
import torch
from torch.testing import assert_close

from tests.plugin._architectures import CASES
from tests.plugin._gradients import TERMS, compare

TRIALS = [(name, kind, engine) for name in CASES for kind in TERMS for engine in ("tape", "func")]


@pytest.mark.parametrize(("name", "kind", "engine"), TRIALS)
def test_gradient_agrees_with_finite_differences(name, kind, engine):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        case = CASES[name]()
    trained, expected = compare(case, TERMS[kind], engine)
    assert_close(trained, expected, rtol=1e-5, atol=1e-7)
    assert expected.abs().max() > 1e-4
