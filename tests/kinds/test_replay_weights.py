"""A replay has the weights of the observed call: other ones than the module's own, or made anew."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrizations, parametrize

from tests.kinds._measure import (
    MAIN,
    WAYS,
    Step,
    assert_taught,
    batch,
    in_turn,
    numbers,
    seeded,
    sobolev,
)
from tests.plugin._trainers import fit_one_step

ways = pytest.mark.parametrize("way", MAIN.values(), ids=MAIN)


def sizes(net):
    return {name: parameter.shape for name, parameter in net.named_parameters()}


class FastWeights(Step):
    """The inner loop of MAML: weights of one call, a function of the module's own."""

    def weights(self):
        return {name: 1.5 * p + 0.1 for name, p in self.net.named_parameters()}

    def call(self, x):
        return functional_call(self.net, self.weights(), (x,))


class Hypernetwork(FastWeights):
    """The weights of the student are the output of another network."""

    def __init__(self):
        super().__init__()
        count = sum(size.numel() for size in sizes(self.net).values())
        self.hyper = seeded(lambda: nn.Linear(1, count))

    def weights(self):
        shapes = sizes(self.net)
        flat = 0.5 * self.hyper.weight[:, 0] + self.hyper.bias  # of one half, without autocast
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}


@ways
@pytest.mark.parametrize("make", [FastWeights, Hypernetwork])
def test_weights_given_to_the_call_are_those_of_the_term(make, way):
    assert_taught(make, way, lambda m, x: functional_call(m.net, m.weights(), (x,)))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight + 0.1


def parametrized(with_what):
    def make():
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        with_what(net)
        return net

    return lambda: Step(seeded(make))


def normed_in_the_old_way(net):
    torch.nn.utils.weight_norm(net[2])


PARAMETRIZED = {
    "own": lambda net: parametrize.register_parametrization(net[0], "weight", Doubled()),
    "weight_norm": lambda net: parametrizations.weight_norm(net[0]),
    "old weight_norm": normed_in_the_old_way,
    "orthogonal": lambda net: parametrizations.orthogonal(net[2], orthogonal_map="cayley"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(("with_what", "name"), in_turn(PARAMETRIZED, MAIN, each=3))
def test_weights_that_are_computed_in_the_call_are_those_of_the_term(with_what, name):
    assert_taught(parametrized(PARAMETRIZED[with_what]), MAIN[name])


def spectral_norm(net):
    parametrizations.spectral_norm(net[0])
    net[0].parametrizations.weight.original.data.add_(numbers(4, 3))  # its estimate is now poor


TAPE = ("tape", "tape, order 2", "half of the rows", "half precision, tangents")
SPECTRAL = {
    "spectral_norm": spectral_norm,
    "old spectral_norm": lambda net: torch.nn.utils.spectral_norm(net[0]),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", TAPE)
@pytest.mark.parametrize("with_what", SPECTRAL.values(), ids=SPECTRAL)
def test_a_spectral_norm_is_divided_by_what_the_observed_call_divided_by(with_what, name):
    """Each call in train mode improves the estimate of the norm by one step of iteration."""

    def prepare(module):
        module.net(batch()[0])
        module.eval()

    assert_taught(parametrized(with_what), WAYS[name], prepare=prepare)


class ChangesItsWeights(Step):
    """Between the call and the term; plain training does not mind, which needs no such weight."""

    def training_step(self, batch, batch_idx):
        loss = mse_loss(self.net(batch[0]), batch[1])
        with torch.no_grad():
            self.net[0].weight.mul_(2.0)
        return loss


@pytest.mark.parametrize("name", list(MAIN))
def test_weights_changed_in_place_between_call_and_term_are_refused(name):
    way, module, data = WAYS[name], ChangesItsWeights(), batch()
    fit_one_step(ChangesItsWeights(), data)
    if way.precision != "64-true":
        module, data = module.float(), [part.float() for part in data]
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)in.?place|changed|modified"):
        fit_one_step(module, data, sobolev(way), precision=way.precision)


class Halves(Step):
    """Calls the student with its own weights and with half of them: the second call is taught."""

    def weights(self):
        return {name: 0.5 * p for name, p in self.net.named_parameters()}

    def call(self, x):
        self.net(x)
        return functional_call(self.net, self.weights(), (x,))


@ways
def test_each_call_of_a_step_has_weights_of_its_own(way):
    assert_taught(Halves, way, lambda m, x: functional_call(m.net, m.weights(), (x,)), call=1)
