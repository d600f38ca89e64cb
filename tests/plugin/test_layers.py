"""Every entry of the table of layers in the documentation."""

import pytest
import torch
from torch.testing import assert_close

from tests.plugin._architectures import CASES
from tests.plugin._gradients import TERMS, compare
from tests.plugin._layer_table import COLUMNS, REFUSED, deviation, is_zero
from tests.plugin._ordinary import ORDINARY
from tests.plugin.test_doctor_examination import fits

ENTRIES = [(name, *column) for name in ORDINARY for column in COLUMNS]
# Every run of the tests tries those: a norm of each kind, attention, a state. The others are slow.
QUICK = [
    ("layer norm", "jvp", "func"),
    ("instance norm", "order 2", "func"),
    ("residual network", "jvp", "tape"),
    ("batch norm", "order 2", "tape"),
    ("vision transformer", "order 2", "tape"),
    ("attention", "vjp", "func"),
    ("lstm", "order 2", "tape"),
]
MEASURED = [
    pytest.param(*entry, marks=() if entry in QUICK else pytest.mark.slow)
    for entry in ENTRIES
    if entry not in REFUSED and not is_zero(*entry[:2])
]


@pytest.mark.parametrize(("name", "kind", "engine"), MEASURED)
def test_trained_gradients_agree_with_finite_differences(name, kind, engine):
    assert deviation(name, kind, engine) < 1e-5


@pytest.mark.parametrize(("name", "kind", "engine"), REFUSED)
def test_what_an_engine_cannot_do_is_refused(name, kind, engine):
    make, shape = ORDINARY[name]
    with pytest.raises(
        ValueError, match=r"engine='func' (cannot run batch norm|has no forward mode)"
    ):
        fits(make(), shape, TERMS[kind], engine=engine)


# Modules that were not written for it


TRIALS = [(name, kind, engine) for name in CASES for kind in TERMS for engine in ("tape", "func")]


@pytest.mark.parametrize(("name", "kind", "engine"), TRIALS)
def test_gradient_agrees_with_finite_differences(name, kind, engine):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        case = CASES[name]()
    trained, expected = compare(case, TERMS[kind], engine)
    assert_close(trained, expected, rtol=1e-5, atol=1e-7)
    assert expected.abs().max() > 1e-4
