from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.finance.baskets import BasketCall
from lightning_sobolev.experiments.finance.data import BasketDataModule
from lightning_sobolev.experiments.finance.pricing import black_scholes_call

MODELS = ("bachelier", "black_scholes")


@pytest.mark.parametrize("model", MODELS)
def test_labels_have_price_and_deltas_as_their_mean(model, generator):
    call = BasketCall.drawn(model, 3)
    state = call.states(1, generator)
    price, delta = call.prices(state, paths=2**17)
    payoffs, derivatives = call.payoffs(state.expand(200_000, -1), generator)
    found = torch.column_stack([payoffs, derivatives])
    errors = found.std(0) / len(found) ** 0.5
    expected = torch.cat([price, delta[0]])
    assert ((found.mean(0) - expected).abs() < 4 * errors).all()


@pytest.mark.parametrize("model", MODELS)
def test_pathwise_derivatives_are_those_of_the_payoff_on_its_path(model):
    call = BasketCall.drawn(model, 4)
    states = call.states(50, torch.Generator().manual_seed(0))

    def payoffs(x):
        return call.payoffs(x, torch.Generator().manual_seed(1))

    derivatives = payoffs(states)[1]
    assert 0.1 < (derivatives > 0).double().mean() < 0.9
    for asset in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[asset] = 1e-6
        slope = (payoffs(states + shift)[0] - payoffs(states - shift)[0]) / 2e-6
        assert_close(derivatives[:, asset], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_deltas_are_the_derivatives_of_prices(model):
    call = BasketCall.drawn(model, 3)
    states = call.states(20, torch.Generator().manual_seed(0))
    deltas = call.prices(states)[1]
    shift = torch.tensor([0.0, 1e-3, 0.0], dtype=torch.float64)
    slope = (call.prices(states + shift)[0] - call.prices(states - shift)[0]) / 2e-3
    assert_close(deltas[:, 1], slope, rtol=1e-3, atol=1e-4)


def test_assets_that_move_as_one_are_one(generator):
    one = torch.zeros(3, 3, dtype=torch.float64)
    one[:, 0] = 1
    basket = BasketCall.drawn("black_scholes", 3)
    call = replace(basket, volatilities=torch.full_like(basket.weights, 0.25), factor=one)
    states = call.states(30, generator)
    price, delta = call.prices(states)
    expected, slope = black_scholes_call(states @ call.weights, call.strike, 0.25)
    assert_close(price, expected, rtol=1e-3, atol=1e-3)
    assert_close(delta, slope[:, None] * call.weights, rtol=5e-3, atol=1e-4)
    alone = BasketCall.drawn("black_scholes", 1)
    expected, slope = black_scholes_call(states[:, 0], 110.0, float(alone.volatilities))
    assert_close(alone.prices(states[:, :1]), (expected, slope[:, None]))


def test_a_market_is_checked():
    with pytest.raises(ValueError, match="model must be bachelier or black_scholes, got 'heston'"):
        BasketCall.drawn("heston", 2)
    with pytest.raises(ValueError, match="assets must be at least 1, got 0"):
        BasketCall.drawn("bachelier", 0)
    with pytest.raises(ValueError, match=r"horizon must be between 0 and expiry=2\.0, got 3\.0"):
        replace(BasketCall.drawn("bachelier", 2), horizon=3.0)
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        data(num_samples=1)


def data(**changes):
    given = {"model": "bachelier", "num_samples": 100, "num_test_points": 50, **changes}
    return BasketDataModule(**given, dtype=torch.float64)


def test_derivatives_change_units_with_the_values():
    module = data()
    table, units = module.test_points().columns, module.units
    states = table["x"] * units.x_std + units.x_mean
    price, delta = module.call.prices(states)
    assert_close(units.targets(table["y"], undo=True), price)
    assert_close(units.jacobian(table["dydx"], undo=True), delta)
    training = module.training_points().columns
    for column in (training["x"], training["y"]):
        assert_close(column.mean(0), torch.zeros_like(column[0]))
        assert_close(column.std(0, correction=0), torch.ones_like(column[0]))


def test_only_training_states_depend_on_the_seed():
    def states(module, table):
        return table.columns["x"] * module.units.x_std + module.units.x_mean

    one, other = data(seed=0), data(seed=1)
    assert_close(states(one, one.test_points()), states(other, other.test_points()))
    assert not torch.equal(one.training_points().columns["x"], other.training_points().columns["x"])
    validation = states(one, one.validation_points())
    assert not torch.isclose(states(one, one.test_points())[0], validation[0]).all()
