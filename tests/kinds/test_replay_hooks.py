"""A replay passes the user's hooks as the observed call did: each acts once."""

import pytest

from lightning_sobolev import CompileSettings
from tests.kinds._measure import (
    MAIN,
    WAYS,
    Spy,
    Step,
    assert_taught,
    batch,
    in_turn,
    numbers,
    sobolev,
)
from tests.plugin._trainers import fit_one_step

ways = pytest.mark.parametrize("way", MAIN.values(), ids=MAIN)


def hooked(register, owner="net"):
    def make():
        module = Step()
        register(module if owner is None else module.get_submodule(owner))
        return module

    return make


def doubles_the_input(net):
    net.register_forward_pre_hook(lambda _, args: (2.0 * args[0],))


def doubles_a_keyword(net):
    def hook(_, args, kwargs):
        return args, {name: 2.0 * value for name, value in kwargs.items()}

    net.register_forward_pre_hook(hook, with_kwargs=True)


class ByName(Step):
    def call(self, x):
        return self.net(input=x)


def hooked_by_name():
    module = ByName()
    doubles_a_keyword(module.net)
    return module


@ways
@pytest.mark.parametrize("make", [hooked(doubles_the_input), hooked_by_name])
def test_a_hook_on_the_input_acts_once(make, way):
    """What is observed is the input of ``forward``, behind the hook: so is the derivative."""

    def data():
        x, *rest = batch()
        return [0.5 * x, *rest]

    function = lambda module, x: module.net.forward(x)  # noqa: E731
    assert_taught(make, way, function, data=data, points=batch()[0])


@ways
def test_a_hook_inside_the_student_acts_once(way):
    make = hooked(doubles_the_input, "net.2")
    assert_taught(make, way)


def triples_the_output(net):
    net.register_forward_hook(lambda *given: 3.0 * given[-1])


def shifts_a_keyword_call(net):
    net.register_forward_hook(lambda *given: 3.0 * given[-1], with_kwargs=True)


_TAPE = ("tape, tangents", "half of the rows", "half precision", "tape, order 2")
TAPE = {name: WAYS[name] for name in _TAPE}
OUTPUT_HOOKS = [triples_the_output, shifts_a_keyword_call]


@pytest.mark.parametrize("way", TAPE.values(), ids=TAPE)
@pytest.mark.parametrize("register", OUTPUT_HOOKS)
def test_the_tape_differentiates_behind_a_hook_on_the_output(register, way):
    assert_taught(hooked(register), way, lambda module, x: 3.0 * module.net.forward(x))


FUNC = [
    {"engine": "func"},
    {"compile": CompileSettings(backend="eager"), "engine": "func"},
]


@pytest.mark.parametrize(
    ("options", "register"), in_turn(FUNC, OUTPUT_HOOKS), ids=["func", "compile"]
)
@pytest.mark.parametrize("kind", ["func", "func, tangents", "order 2, func"])
def test_a_hook_on_the_output_is_refused_where_forward_alone_is_transformed(
    kind, options, register
):
    used = sobolev(WAYS[kind], Spy(), **options)
    with pytest.raises(ValueError, match=r"engine.*'tape'"):
        fit_one_step(hooked(register)(), batch(), used)


def looks(seen):
    def register(net):
        net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        net.register_forward_hook(lambda *given: seen.append(len(given[-1])))

    return register


@ways
def test_hooks_that_only_look_change_nothing(way):
    seen = []
    assert_taught(hooked(looks(seen)), way)
    assert seen[:2] == [6, 6]


@ways
def test_hooks_that_only_look_stay_as_they_were(way):
    made, seen = [], []

    def make():
        made.append(hooked(looks(seen))())
        return made[-1]

    module = make()
    before = [dict(module.net._forward_pre_hooks), dict(module.net._forward_hooks)]
    precision = way.precision
    data = batch() if precision == "64-true" else [part.float() for part in batch()]
    module = module if precision == "64-true" else module.float()
    fit_one_step(module, data, sobolev(way, Spy()), precision=precision)
    assert [dict(module.net._forward_pre_hooks), dict(module.net._forward_hooks)] == before


class Twice(Step):
    """The hook's factor is another one in each call: the second call is taught."""

    def __init__(self):
        super().__init__()
        self.factor = 1.0
        self.net.register_forward_pre_hook(lambda _, args: (self.factor * args[0],))

    def call(self, x):
        self.factor = 1.0
        self.net(numbers(*x.shape).to(x.dtype))
        self.factor = 2.0
        y = self.net(0.5 * x)
        self.factor = 7.0
        return y


@ways
def test_a_hook_that_changes_its_mind_later_is_not_asked_again(way):
    assert_taught(Twice, way, lambda module, x: module.net.forward(x), call=1)
