"""Networks that see other things than the student; references are written out with torch.func."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap
from torch.testing import assert_close

from lightning_sobolev import (
    CacheSettings,
    CompileSettings,
    NetworkTeacher,
    SobolevCallback,
    SobolevLoss,
    SobolevSpec,
    SobolevTerm,
    Standardizer,
    cache_answers,
)
from lightning_sobolev._types import Query
from lightning_sobolev.spec import OUTPUT_MAPS
from tests.kinds._by_hand import EXACT, RANDOM, assert_is, fit, mlp, share, slope, weights
from tests.teachers._dense import Policy, ask, assert_is_jet, numbers

OBS, HIDDEN = numbers(6, 3), numbers(6, 2, seed=1)
BATCH = {"obs": OBS, "privileged": HIDDEN, "y": numbers(6, 2, seed=2)}


class Sees(nn.Module):
    """A policy of an observation and of what only a simulator knows."""

    def __init__(self):
        super().__init__()
        self.body = mlp(5)

    def forward(self, obs, privileged):
        return self.body(torch.cat([obs * privileged.sum(-1, keepdim=True), privileged], -1))


class TensorDictLike(Mapping):
    """A mapping with a batch size and operations on all of its tensors, and no dict."""

    def __init__(self, held):
        self._held, self.batch_size = held, (6,)

    def __getitem__(self, key):
        return self._held[key]

    def __iter__(self):
        return iter(self._held)

    def __len__(self):
        return len(self._held)


def apart(net):
    return lambda obs, hidden: net(obs[None], hidden[None])[0]


def joined(net):
    return lambda obs, hidden: net(torch.cat([obs, hidden])[None])[0]


WAYS = {
    "by position": (Sees, ["obs", "privileged"], apart),
    "by name": (Sees, {"privileged": "privileged", "obs": "obs"}, apart),
    "joined": (lambda: mlp(5), [["obs", "privileged"]], joined),
    "the other way around": (
        lambda: mlp(5), [["privileged", "obs"]],
        lambda net: lambda obs, hidden: net(torch.cat([hidden, obs])[None])[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "inputs", "by_hand"), WAYS.values(), ids=WAYS)
def test_the_jet_is_that_of_the_network_in_what_both_see(build, inputs, by_hand):
    net = build()
    teacher = NetworkTeacher(net, inputs=inputs, shared="obs")
    assert_is_jet(ask(teacher, BATCH), by_hand(net), OBS, HIDDEN)


@pytest.mark.parametrize(
    ("batch", "paths"),
    [
        (TensorDictLike(BATCH), ("obs", "privileged")),
        ((OBS, {"state": [HIDDEN]}), (0, "1.state.0")),
        ({"groups": TensorDictLike(BATCH)}, ("groups.obs", "groups.privileged")),
    ],
)
def test_batches_of_any_structure(batch, paths):
    net = Sees()
    teacher = NetworkTeacher(net, inputs=paths, shared=paths[0])
    assert_is_jet(ask(teacher, batch, OBS), apart(net), OBS, HIDDEN)


def test_the_network_gets_what_the_student_observes_and_not_what_the_batch_holds():
    net, seen = Sees(), numbers(6, 3, seed=9)
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    assert_is_jet(ask(teacher, BATCH, seen), apart(net), seen, HIDDEN)


def test_an_input_that_the_step_has_computed_is_not_in_the_batch():
    net, code = Sees(), numbers(6, 3, seed=9)
    teacher = NetworkTeacher(net, inputs=["code", "privileged"], shared="code")
    assert_is_jet(ask(teacher, BATCH, code), apart(net), code, HIDDEN)


def test_a_single_path_is_shared():
    teacher = NetworkTeacher(net := mlp(3), inputs="obs")
    assert_is_jet(ask(teacher, BATCH), lambda x: net(x[None])[0], OBS)


def test_some_rows_have_their_own_privileged_ones():
    net, rows = Sees(), torch.tensor([4, 1, 5])
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    assert_is_jet(ask(teacher, BATCH, rows=rows), apart(net), OBS[rows], HIDDEN[rows])


def test_an_output_map_comes_behind_all():
    net = Sees()
    teacher = NetworkTeacher(
        net, inputs=["obs", "privileged"], shared="obs", answer=lambda y: 3.0 * y
    )
    expected = lambda o, h: (3.0 * apart(net)(o, h)).log_softmax(-1)  # noqa: E731
    jet = ask(teacher, BATCH, on=OUTPUT_MAPS["log_softmax"])
    assert_is_jet(jet, expected, OBS, HIDDEN)


def test_precision_is_the_networks_and_the_answer_the_students():
    net = Sees()
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    single = {name: tensor.float() for name, tensor in BATCH.items()}
    jet = ask(teacher, single)
    expected = net(OBS.float().double(), HIDDEN.float().double()).float()
    assert_close(jet.value, expected, rtol=0, atol=0)
    u = torch.ones(1, 6, 2)
    jacobian = vmap(jacrev(apart(net)))(OBS.float().double(), HIDDEN.float().double())
    assert_close(jet.vjp(u)[0], jacobian.sum(1).float())


def test_integers_stay_integers_and_nothing_has_a_graph():
    class Terrains(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.known = mlp(5).float(), nn.Embedding(4, 2)

        def forward(self, obs, terrain):
            return self.body(torch.cat([obs, self.known(terrain)], -1))

    net, terrain = Terrains(), torch.tensor([0, 3, 1, 1, 2, 0])
    hidden = HIDDEN.clone().requires_grad_()
    batch = {"obs": OBS, "terrain": terrain, "privileged": hidden.double()}
    value = ask(NetworkTeacher(net, inputs=["obs", "terrain"], shared="obs"), batch).value
    assert_close(value, net(OBS.float(), terrain).double(), rtol=0, atol=0)
    teacher = NetworkTeacher(Sees(), inputs=["obs", "privileged"], shared="obs")
    jet = ask(teacher, batch)
    assert not jet.value.requires_grad
    assert not jet.vjp(torch.ones(1, 6, 2, dtype=torch.float64)).requires_grad


REFUSED = [
    ({"inputs": []}, r"inputs must be one key path into the batch, or several, got \[\]"),
    ({"inputs": ["obs", "hidden"]}, r"must be one of the inputs \['hidden', 'obs'\], got None"),
    ({"inputs": ["obs"], "shared": "priv"}, r"one of the inputs \['obs'\], got 'priv'"),
    ({"shared": "obs"}, "shared must be None without inputs=, got 'obs'"),
    ({"inputs": "obs", "takes": "call"}, "takes must be 'auto' beside inputs=, got 'call'"),
    ({"inputs": "obs", "convert": lambda x: x}, r"convert beside inputs must be .* one of \(x\)"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        NetworkTeacher(mlp(5), **options)


TWO = ["obs", "privileged"]
MISFITS = [
    (["obs", "hidden"], BATCH, r"inputs='hidden'\): no 'hidden' here; got a dict with keys \['obs"),
    (TWO, None, r"NetworkTeacher\(inputs=...\) needs the batch"),
    (TWO, {**BATCH, "privileged": HIDDEN[:4]}, r"'privileged' in the batch must .* 6 rows, got"),
    (TWO, {**BATCH, "obs": numbers(6, 5)}, r"is \[6, 5\], the observed input is \[6, 3\]"),
    (TWO, {**BATCH, "obs": numbers(4, 3)}, "'obs' in the batch must be a tensor with 6 rows"),
    ([TWO], {**BATCH, "privileged": HIDDEN[:, :, None]}, r"joined, got \{'obs': \[6, 3\], 'pri"),
]


@pytest.mark.parametrize(("inputs", "batch", "text"), MISFITS)
def test_a_batch_that_does_not_fit(inputs, batch, text):
    teacher = NetworkTeacher(mlp(5) if inputs == [TWO] else Sees(), inputs=inputs, shared="obs")
    with pytest.raises(ValueError, match=text):
        ask(teacher, batch, OBS)


# Other units


def units(seed):
    made = Standardizer(3, 2)
    made.x_mean, made.y_mean = numbers(3, seed=seed), numbers(2, seed=seed + 1)
    made.x_std = numbers(3, seed=seed + 2).abs() + 0.5
    made.y_std = numbers(2, seed=seed + 3).abs() + 0.5
    return made


def test_normalizers_of_student_and_teacher_differ():
    net, ours, theirs = mlp(3), units(20), units(30)
    teacher = NetworkTeacher(
        net,
        convert=lambda x: theirs.inputs(ours.inputs(x, undo=True)),
        answer=lambda y: ours.targets(theirs.targets(y, undo=True)),
    )

    def expected(x):
        raw = x * ours.x_std + ours.x_mean
        y = net(((raw - theirs.x_mean) / theirs.x_std)[None])[0]
        return (y * theirs.y_std + theirs.y_mean - ours.y_mean) / ours.y_std

    x = numbers(6, 3, seed=8)
    assert_is_jet(teacher.at(Query(x)), expected, x)
    assert_close(teacher.function(torch.sin, x.dtype)(x), vmap(expected)(x).sin())


def test_a_conversion_is_rounded_once():
    """In float32 the difference of two numbers near 1e6 has no digits left."""
    net, shift = mlp(3), torch.full((3,), 1e6)
    teacher = NetworkTeacher(net, convert=lambda x: (x + shift) - shift)
    expected = net(OBS.float().double()).float()
    assert_close(teacher.at(Query(OBS.float())).value, expected, atol=1e-6, rtol=1e-6)


def test_the_student_sees_some_columns_of_the_teachers_input():
    net, seen, columns = mlp(3), OBS[:, [2, 0]] + 0.1, torch.tensor([2, 0])
    teacher = NetworkTeacher(
        net, inputs="obs", convert=lambda x, held: held.index_copy(1, columns, x)
    )

    def expected(x, obs):
        return net(torch.stack([x[1], obs[1], x[0]])[None])[0]

    assert_is_jet(ask(teacher, BATCH, seen), expected, seen, OBS)


@pytest.mark.parametrize(
    ("convert", "batch", "text"),
    [
        (lambda x, _: x, BATCH, r"in the batch it is \[6, 3\], convert gives \[6, 2\]"),
        (lambda x, _: x, {"y": BATCH["y"]}, "convert needs 'obs' in the batch, got none"),
    ],
)
def test_a_conversion_that_does_not_fit(convert, batch, text):
    teacher = NetworkTeacher(mlp(3), inputs="obs", convert=convert)
    with pytest.raises(ValueError, match=text):
        ask(teacher, batch, OBS[:, :2])


@pytest.mark.parametrize("name", ["convert", "answer"])
def test_weights_do_not_identify_a_teacher_with_a_conversion(name, tmp_path):
    teacher = NetworkTeacher(mlp(3), **{name: torch.sin})
    with pytest.raises(ValueError, match="label must identify a teacher with convert= or answer="):
        cache_answers(teacher, lambda index: OBS[index], 6, tmp_path, CacheSettings())
    cache_answers(teacher, lambda index: OBS[index], 6, tmp_path, CacheSettings(), label="sine")


# Trained


def term_by_hand(net, teacher, rows=slice(None)):
    """Return the mean over rows of the squared distance of both Jacobians."""
    ours = vmap(jacrev(lambda x: net(x[None])[0]))(OBS[rows])
    theirs = vmap(jacrev(apart(teacher)))(OBS[rows], HIDDEN[rows])
    return (ours - theirs).square().flatten(1).sum(1).mean()


def callback(teacher, term=(), **options):
    spec = SobolevSpec(terms=[SobolevTerm(**{**EXACT, **dict(term)})])
    return SobolevCallback(teacher, spec, **{"doctor": False, **options})


@pytest.mark.parametrize("side", ["cotangent", "tangent"])
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_step_subtracts_the_gradient_of_the_term(side, engine):
    net = Sees()
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    taught = callback(teacher, {"side": side}, engine=engine)
    student = Policy().net
    expected = slope(term_by_hand(student, net), student)
    assert_is(share(Policy, [BATCH], taught), expected)


def test_a_compiled_call_asks_outside():
    torch.compiler.reset()
    net = Sees()
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    taught = callback(teacher, compile=CompileSettings(backend="aot_eager"))
    student = Policy().net
    assert_is(share(Policy, [BATCH], taught), slope(term_by_hand(student, net), student))
    torch.compiler.reset()


def test_a_compiled_call_converts_inside():
    torch.compiler.reset()
    net = mlp(3)
    scale = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    teacher = NetworkTeacher(net, convert=lambda x: x * scale, answer=lambda y: 3 * y)
    taught = callback(teacher, compile=CompileSettings(backend="aot_eager"))
    student = Policy().net
    ours = vmap(jacrev(lambda x: student(x[None])[0]))(OBS)
    theirs = vmap(jacrev(lambda x: 3 * net((x * scale)[None])[0]))(OBS)
    term = (ours - theirs).square().flatten(1).sum(1).mean()
    assert_is(share(Policy, [BATCH], taught), slope(term, student))
    torch.compiler.reset()


def test_a_step_with_some_rows_and_the_doctor():
    """Random rows: the share is that of one of all sets of three of six rows."""
    net = Sees()
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    found = share(Policy, [BATCH], callback(teacher, {"rows": 0.5}, doctor=True))
    student = Policy().net
    sets = [list(rows) for rows in torch.combinations(torch.arange(6), 3).tolist()]
    shares = [slope(term_by_hand(student, net, rows), student) for rows in sets]
    nearest = min(shares, key=lambda one: float((one - found).norm()))
    assert_is(found, nearest)


class Validates(Policy):
    def validation_step(self, batch, batch_idx):
        self.net(batch["obs"])


def test_validation_reports_the_term():
    net, module = Sees(), Validates()
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    used = fit(module, [BATCH], callback(teacher, validate=True), val=[BATCH])
    found = used.callback_metrics["val/sobolev/order_1"]
    assert_close(float(found), float(term_by_hand(module.net, net).detach()), rtol=1e-6, atol=0)


def test_the_true_student_has_no_term_and_no_gradient():
    """Where what is privileged is the same in all rows, a student can know the teacher."""
    net, hidden = Sees(), HIDDEN[:1]

    class Knows(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Sees()

        def forward(self, obs):
            return self.net(obs, hidden.expand(len(obs), -1))

    student = Knows()
    teacher = NetworkTeacher(net, inputs=["obs", "privileged"], shared="obs")
    terms = [SobolevTerm(order=0), SobolevTerm(**RANDOM), SobolevTerm(order=2, **RANDOM)]
    loss_fn = SobolevLoss(teacher, terms)
    with loss_fn.observe(student):
        student(OBS)
    report = loss_fn(batch={"obs": OBS, "privileged": hidden.expand(6, -1)})
    report.loss.backward()
    assert_close(float(report), 0.0, rtol=0, atol=1e-24)
    found = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    with loss_fn.observe(student):
        student(OBS)
    assert float(loss_fn(batch=BATCH)) > 1e-3  # other rows know other things


# Recurrent students


class PerStep(nn.Module):
    """Lets a network of rows answer for sequences."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        steps = inputs[0].shape[:2]
        return self.network(*[one.flatten(0, 1) for one in inputs]).unflatten(0, steps)


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.memory, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
        self.double()

    def forward(self, obs):
        return self.head(self.memory(obs)[0])


class Walks(Policy):
    def __init__(self):
        super().__init__()
        self.net = Remembers()


def test_a_recurrent_student_learns_from_a_network_of_single_steps():
    net, obs, hidden = Sees(), numbers(4, 5, 3), numbers(4, 5, 2, seed=1)
    batch = {"obs": obs, "privileged": hidden, "y": numbers(4, 5, 2, seed=2)}
    teacher = NetworkTeacher(PerStep(net), inputs=["obs", "privileged"], shared="obs")
    found = share(Walks, [batch], callback(teacher))

    student = Remembers()
    # [batch, steps, out, steps, in]: the teacher's knows the present step alone.
    ours = torch.stack([_by_rows(student, row) for row in obs])
    theirs = torch.zeros_like(ours)
    for step in range(5):
        present = vmap(jacrev(apart(net)))(obs[:, step], hidden[:, step])
        theirs[:, step, :, step] = present
    term = (ours - theirs).square().flatten(1).sum(1).mean()
    assert_is(found, slope(term, student))


def _by_rows(student, row):
    row = row[None].clone().requires_grad_()
    y = student(row)[0]
    found = [torch.autograd.grad(one, row, create_graph=True)[0][0] for one in y.flatten()]
    return torch.stack(found).unflatten(0, y.shape)


def test_a_teacher_that_trains_with_its_student_is_refused():
    module = Policy()
    before = weights(module)
    teacher = NetworkTeacher(module.net, inputs="obs")
    with pytest.raises(ValueError, match="teacher must not share parameters with the student"):
        fit(module, [BATCH], callback(teacher))
    assert_close(weights(module), before, rtol=0, atol=0)


def nothing(*_):
    return None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"answer": nothing}, "answer must be a function that gives a tensor, got 'NoneType'"),
        ({"convert": nothing}, "convert must be a function that gives a tensor, got 'NoneType'"),
        (
            {"convert": nothing, "inputs": "obs"},
            "convert must be a function that gives a tensor, got 'NoneType'",
        ),
    ],
)
def test_functions_that_give_no_tensor(options, text):
    with pytest.raises(ValueError, match=text):
        ask(NetworkTeacher(mlp(3), **options), BATCH, OBS)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"answer": 2.0}, "answer must be a function or None, got 2.0"),
        ({"convert": 2.0}, "convert must be a function or None, got 2.0"),
        ({"inputs": 2.0}, "inputs must be one key path into the batch, or several, got 2.0"),
        ({"inputs": [None]}, "inputs must be key paths, or lists of those that are joined, got"),
        ({"inputs": {"height": "obs"}}, r"inputs must be the arguments of Sees.forward, got \['h"),
        ({"inputs": "obs"}, r"the arguments of Sees.forward, got \['obs'\]: missing a required"),
        (
            {"inputs": ["obs", ["obs", "privileged"], "y"], "shared": "obs"},
            r"got \['obs', 'obs \+ privileged', 'y'\]: too many positional arguments",
        ),
    ],
)
def test_arguments_that_a_network_does_not_take(options, text):
    with pytest.raises(ValueError, match=text):
        NetworkTeacher(Sees(), **options)
