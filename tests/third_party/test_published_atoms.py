"""Published models of atoms, unchanged: forces and Hessian columns of graphs in one flat table."""

import copy
from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.kinds._by_hand import EXACT
from tests.plugin._gradients import slopes
from tests.plugin._trainers import fit_one_step
from tests.third_party._atoms import ATOMS

pytestmark = [
    pytest.mark.third_party,
    pytest.mark.filterwarnings("ignore"),  # their own
]


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return ATOMS[name]()


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def subtracted(case, **term):
    """Return by name what a step subtracted because of the term."""
    start, after = case.module.state_dict(), []
    start = {name: tensor.clone() for name, tensor in start.items()}
    spec = SobolevSpec(terms=[SobolevTerm(**EXACT, side=case.side, **term)])
    for callbacks in ([], [SobolevCallback(case.teacher, spec, **case.options)]):
        case.module.load_state_dict(start)
        fit_one_step(case.module, copy.copy(case.batch), *callbacks)
        after.append(weights(case.module))
    case.module.load_state_dict(start)
    plain, taught = after
    return {name: plain[name] - taught[name] for name in plain}


def by_differences(case, gradient, chosen=None):
    kept = slice(None) if chosen is None else torch.isin(case.index, torch.tensor(chosen))
    parameters = {n: p for n, p in case.module.named_parameters() if p.requires_grad}
    gradient = {name: gradient[name] for name in parameters}
    return slopes(lambda: case.errors(case.module)[kept].mean(), parameters, gradient, 1e-5)


@pytest.mark.parametrize("name", ATOMS)
def test_a_published_model_of_atoms_is_taught_as_it_is(name, deviation):
    case = made(name)
    found, expected = by_differences(case, subtracted(case))
    deviation("published", name, found=found, expected=expected)
    assert expected.abs().max() > 1e-6
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ATOMS)
def test_some_of_its_molecules_are_taught_alone(name):
    case = made(name)
    gradient = subtracted(case, rows=0.6)
    pairs = [by_differences(case, gradient, list(two)) for two in combinations(range(3), 2)]
    found, expected = min(pairs, key=lambda pair: float((pair[0] - pair[1]).norm()))
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
