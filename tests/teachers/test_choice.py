"""One teacher for each row; references are the hand-written function with the same choice."""

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jacrev, vmap
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    CompileSettings,
    DirectionalTeacher,
    NetworkTeacher,
    SobolevCallback,
    SobolevLoss,
    SobolevSpec,
    SobolevTerm,
    TeacherChoice,
)
from lightning_sobolev._groups import Groups
from lightning_sobolev._types import Query, Teacher
from lightning_sobolev.spec import OUTPUT_MAPS
from tests.kinds._by_hand import EXACT, assert_is, fit, mlp, share, slope, weights
from tests.teachers._dense import Policy, ask, assert_is_jet, numbers

OBS, HIDDEN = numbers(7, 3), numbers(7, 2, seed=1)
CHOSEN = torch.tensor([1, 0, 2, 1, 1, 0, 2])
BATCH = {"obs": OBS, "privileged": HIDDEN, "y": numbers(7, 2, seed=2), "teacher": CHOSEN}
SOME = torch.tensor([1, 0, -1, 1, -1, 0, 1])
U, V = numbers(2, 7, 2, seed=5), numbers(2, 7, 3, seed=6)


def closed(x):
    return torch.stack([x.sum(-1).sin(), x.square().sum(-1).cos()], -1)


def experts():
    """Return a network, a network with privileged inputs and a closed form, and all by hand."""
    plain, joined = mlp(3, seed=1), mlp(5, seed=2)
    teachers = [
        plain,
        NetworkTeacher(joined, inputs=[["obs", "privileged"]], shared="obs"),
        AnalyticTeacher(closed),
    ]

    def by_hand(x, hidden, number):
        answers = [plain(x[None])[0], joined(torch.cat([x, hidden])[None])[0], closed(x)]
        return sum((number == k) * answer for k, answer in enumerate(answers))

    return teachers, by_hand


def test_rows_come_from_the_chosen_teachers():
    teachers, by_hand = experts()
    assert_is_jet(ask(TeacherChoice(teachers), BATCH), by_hand, OBS, HIDDEN, CHOSEN)


def test_some_rows_and_an_output_map():
    teachers, by_hand = experts()
    rows = torch.tensor([2, 6, 3, 1])
    jet = ask(TeacherChoice(teachers), BATCH, rows=rows, on=OUTPUT_MAPS["log_softmax"])
    mapped = lambda *row: by_hand(*row).log_softmax(-1)  # noqa: E731
    assert_is_jet(jet, mapped, OBS[rows], HIDDEN[rows], CHOSEN[rows])


def test_a_choice_within_a_choice():
    teachers, by_hand = experts()
    batch = {**BATCH, "kind": (CHOSEN == 2).long(), "teacher": CHOSEN.clamp(max=1)}
    inner = TeacherChoice(teachers[:2])
    jet = ask(TeacherChoice([inner, teachers[2]], index="kind"), batch)
    assert_is_jet(jet, by_hand, OBS, HIDDEN, CHOSEN)


def test_arrays_in_the_batch_are_cut_to_the_rows():
    net, jacobian = mlp(3), numbers(7, 2, 3, seed=7)
    chosen = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    batch = {**BATCH, "jacobian": jacobian, "teacher": chosen}
    teacher = TeacherChoice([net, BatchTeacher(jacobian="jacobian")])
    own = vmap(jacrev(lambda x: net(x[None])[0]))(OBS)
    expected = torch.where(chosen[:, None, None] == 1, jacobian, own)
    assert_close(ask(teacher, batch).vjp(U), torch.einsum("pbo,boi->pbi", U, expected))
    rows = torch.tensor([6, 0, 2])
    jet = ask(teacher, batch, rows=rows)
    assert_close(jet.jvp(V[:, rows]), torch.einsum("boi,pbi->pbo", expected[rows], V[:, rows]))
    with pytest.raises(ValueError, match="an order-0 term needs value="):
        _ = jet.value


@pytest.mark.parametrize("numbers_", [SOME, torch.full((7,), -1), SOME.int()])
def test_minus_one_is_not_known(numbers_):
    jet = ask(TeacherChoice([mlp(3), mlp(3, seed=2)]), {**BATCH, "teacher": numbers_})
    none = numbers_ < 0
    for answer in (jet.value[None], jet.vjp(U), jet.jvp(V), jet.hvp(U, V)):
        assert answer[:, none].isnan().all()
        assert answer[:, ~none].isfinite().all()
    assert jet.value.shape == (7, 2)


def test_no_rows():
    empty = {name: tensor[:0] for name, tensor in BATCH.items()}
    jet = ask(TeacherChoice([mlp(3), mlp(3)]), empty)
    assert jet.value.shape == (0, 2)
    assert jet.vjp(U[:, :0]).shape == (2, 0, 3)


def test_each_teacher_is_asked_about_its_own_rows_once():
    seen = []

    class Counts(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, x):
            seen.append((self.number, x.detach().clone()))
            return x.sin()

    teacher = TeacherChoice([Counts(k) for k in range(4)])
    ask(teacher, BATCH).vjp(V)
    assert [number for number, _ in seen] == [0, 1, 2]  # nobody asks the fourth
    for number, x in seen:
        assert_close(x, OBS[number == CHOSEN], rtol=0, atol=0)


def test_precisions_of_teachers_may_differ():
    double, single = mlp(3), mlp(3, seed=2).float()
    jet = ask(TeacherChoice([double, single]), {**BATCH, "obs": OBS.float(), "teacher": CHOSEN % 2})
    assert jet.value.dtype == torch.float32
    expected = torch.where(
        (CHOSEN % 2 == 0)[:, None], double(OBS.float().double()).float(), single(OBS.float())
    )
    assert_close(jet.value, expected, rtol=1e-6, atol=1e-6)


def test_nodes_of_graphs_have_no_teachers_of_their_own():
    groups = Groups(torch.tensor([0, 0, 1, 1, 1, 1]), 2)
    with pytest.raises(ValueError, match="groups must be None with a TeacherChoice"):
        ask(TeacherChoice([mlp(3)], "terrain"), BATCH, groups=groups)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (CHOSEN + 1, r"must be in \[0, 3\), a teacher, or -1, got 1 to 3"),
        (CHOSEN - 2, r"must be in \[0, 3\), a teacher, or -1, got -2 to 0"),
        (CHOSEN.double(), r"index 'teacher' in the batch must hold 7 integers, got a tensor \[7\]"),
        (CHOSEN > 0, "must hold 7 integers"),
        (CHOSEN[:, None], r"must hold 7 integers, got a tensor \[7, 1\]"),
        (CHOSEN[:5], "must be a tensor with 7 rows"),
    ],
)  # fmt: skip
def test_an_index_that_is_none(index, text):
    teachers, _ = experts()
    with pytest.raises(ValueError, match=text):
        ask(TeacherChoice(teachers), {**BATCH, "teacher": index})


def test_a_batch_without_an_index_and_no_batch():
    teacher = TeacherChoice([mlp(3)], index="expert")
    with pytest.raises(ValueError, match=r"TeacherChoice\(index='expert'\): no 'expert' here"):
        ask(teacher, BATCH)
    with pytest.raises(ValueError, match="TeacherChoice needs the batch"):
        teacher.at(Query(OBS))


@pytest.mark.parametrize(
    ("teachers", "text"),
    [
        ([], "teachers must be a sequence of one or more, got"),
        (mlp(3), "teachers must be a sequence of one or more, got"),
        ([mlp(3), closed], r"teachers\[1\] must be a Teacher or a module, got function"),
    ],
)
def test_teachers_that_are_none(teachers, text):
    with pytest.raises(ValueError, match=text):
        TeacherChoice(teachers)


def test_answers_of_two_shapes():
    with pytest.raises(ValueError, match=r"answer in one shape, got rows of \[\[2\], \[4\]\]"):
        _ = ask(TeacherChoice([mlp(3), mlp(3, 4)]), {**BATCH, "teacher": CHOSEN % 2}).value


def test_what_is_matched_by_default_is_what_teachers_agree_on():
    term = SobolevTerm(order=0)

    class Values(AnalyticTeacher):
        default_term = term

    assert TeacherChoice([Values(closed), Values(closed)]).default_term == term
    assert TeacherChoice([Values(closed), mlp(3)]).default_term is None


def test_teachers_with_directions_of_their_own_are_refused():
    directional = DirectionalTeacher(tangents="v", pushed="jv")
    batch = {**BATCH, "v": numbers(7, 3), "jv": numbers(7, 2), "teacher": CHOSEN % 2}
    teacher = TeacherChoice([mlp(3), directional])
    query, term = Query(OBS, batch=batch), SobolevTerm(side="tangent")
    with pytest.raises(ValueError, match=r"teachers\[1\] of TeacherChoice must .* a Directional"):
        teacher.directions(query, term)
    assert TeacherChoice([mlp(3)]).directions(query, term) is None


def test_networks_are_those_of_all():
    teachers, _ = experts()
    inner = TeacherChoice(teachers[:2])
    outer = TeacherChoice([inner, AnalyticTeacher(closed), net := mlp(3)])
    assert outer.networks == (*inner.networks, net)
    assert Teacher.networks == AnalyticTeacher(closed).networks == ()


# Trained


def callback(teacher, term=(), on="identity", **options):
    spec = SobolevSpec(terms=[SobolevTerm(**{**EXACT, **dict(term)})], on=on)
    return SobolevCallback(teacher, spec, **{"doctor": False, **options})


def term_by_hand(net, by_hand, chosen, rows=None):
    """Return the mean of the squared distance of both Jacobians over rows with a teacher."""
    rows = (chosen >= 0).nonzero()[:, 0] if rows is None else rows
    ours = vmap(jacrev(lambda x: net(x[None])[0]))(OBS[rows])
    theirs = vmap(jacrev(by_hand))(OBS[rows], HIDDEN[rows], chosen[rows])
    return (ours - theirs).square().flatten(1).sum(1).mean()


@pytest.mark.parametrize("chosen", [CHOSEN, SOME])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"engine": "func", "term": {"side": "tangent"}},
        {"compile": CompileSettings(backend="aot_eager")},
    ],
    ids=["tape", "func", "compiled"],
)
def test_a_step_subtracts_the_gradient_of_the_term(options, chosen):
    torch.compiler.reset()
    teachers, by_hand = experts()
    student = Policy().net
    expected = slope(term_by_hand(student, by_hand, chosen), student)
    taught = callback(TeacherChoice(teachers), **options)
    assert_is(share(Policy, [{**BATCH, "teacher": chosen}], taught), expected)


def test_a_step_with_some_rows_and_the_doctor():
    teachers, by_hand = experts()
    taught = callback(TeacherChoice(teachers), {"rows": 0.5}, doctor=True)
    found, student = share(Policy, [BATCH], taught), Policy().net
    sets = torch.combinations(torch.arange(7), 4)
    shares = [slope(term_by_hand(student, by_hand, CHOSEN, rows), student) for rows in sets]
    assert_is(found, min(shares, key=lambda one: float((one - found).norm())))


def test_no_teacher_at_all_changes_nothing():
    teachers, _ = experts()
    batch = {**BATCH, "teacher": torch.full((7,), -1)}
    with pytest.warns(UserWarning, match="no row of this batch has a known target"):
        found = share(Policy, [batch], callback(TeacherChoice(teachers)))
    assert_close(found, torch.zeros_like(found), rtol=0, atol=0)


def test_a_direction_is_zero_where_a_policy_is_not_known():
    """Fisher directions are made of the teacher's answer; NaN in them would reach the student."""
    net = mlp(3)
    term = {"projection": "fisher", "num_projections": 1}
    batch = {**BATCH, "teacher": SOME.clamp(max=0)}
    found = share(Policy, [batch], callback(TeacherChoice([net]), term, on="log_softmax"))
    assert found.isfinite().all()
    assert found.norm() > 1e-6


def test_the_true_student_has_no_term_and_no_gradient():
    net = mlp(3)
    loss_fn = SobolevLoss(
        TeacherChoice([mlp(3), mlp(3)]), [SobolevTerm(order=0), SobolevTerm(), SobolevTerm(order=2)]
    )
    with loss_fn.observe(net):
        net(OBS)
    report = loss_fn(batch={**BATCH, "teacher": SOME})
    report.loss.backward()
    assert_close(float(report), 0.0, rtol=0, atol=1e-24)
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


class Broken(nn.Module):
    def forward(self, x):
        return x[:, :2].square() * torch.tensor(float("nan")).to(x)


def test_a_network_that_answers_nan_is_broken_and_not_unknown():
    module, batch = Policy(), {**BATCH, "teacher": CHOSEN % 2}
    before = weights(module)
    with pytest.raises(ValueError, match="must be finite, got NaN or Inf in 3 of 7 rows"):
        fit(module, [batch], callback(TeacherChoice([mlp(3), Broken()])))
    assert_close(weights(module), before, rtol=0, atol=0)


class Conditioned(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        self.body = mlp(3, seed=seed)

    def forward(self, x, scale):
        return self.body(x) * scale


class Scaled(Policy):
    def __init__(self):
        super().__init__()
        self.net = Conditioned(seed=4)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["obs"], batch["privileged"]), batch["y"])


@pytest.mark.parametrize("takes", ["auto", "call"])
def test_a_call_with_other_arguments_is_not_followed(takes):
    module, teacher = Scaled(), TeacherChoice([NetworkTeacher(Conditioned(), takes=takes)])
    with pytest.raises(ValueError, match="a network in TeacherChoice must not be called as the"):
        fit(module, [{**BATCH, "teacher": CHOSEN.clamp(max=0)}], callback(teacher))


def test_a_network_that_takes_the_input_alone_is_asked_beside_such_a_call():
    nets = [mlp(3, seed=1), mlp(3, seed=2)]
    teacher = TeacherChoice(nets)
    found = share(Scaled, [{**BATCH, "teacher": CHOSEN % 2}], callback(teacher))
    student = Conditioned(seed=4)
    by_hand = lambda x, _, k: (1 - k) * nets[0](x[None])[0] + k * nets[1](x[None])[0]  # noqa: E731
    ours = vmap(jacrev(lambda x, h: student(x[None], h[None])[0]))(OBS, HIDDEN)
    theirs = vmap(jacrev(by_hand))(OBS, HIDDEN, CHOSEN % 2)
    term = (ours - theirs).square().flatten(1).sum(1).mean()
    assert_is(found, slope(term, student))


def test_takes_call_of_a_student_called_with_the_input_alone():
    net = mlp(3)
    teacher = TeacherChoice([NetworkTeacher(net, takes="call")])
    batch = {**BATCH, "teacher": SOME.clamp(max=0)}
    found, student = share(Policy, [batch], callback(teacher)), Policy().net
    by_hand = lambda x, *_: net(x[None])[0]  # noqa: E731
    assert_is(found, slope(term_by_hand(student, by_hand, SOME), student))


class Holds(Policy):
    """Keeps its teacher beside the student, as checkpoints of both in one file do."""

    def __init__(self, expert):
        super().__init__()
        self.expert = expert


def test_a_teacher_that_trains_with_its_student_is_refused():
    module = Policy()
    teacher = TeacherChoice([mlp(3), module.net])
    with pytest.raises(ValueError, match="teacher must not share parameters with the student"):
        fit(module, [BATCH], callback(teacher))


@pytest.mark.filterwarnings("ignore:Found 4 module")  # Lightning's, of any frozen network inside
def test_teachers_held_by_the_module_are_not_taken_for_the_student():
    expert = mlp(3).requires_grad_(False)
    found = share(
        lambda: Holds(expert), [{**BATCH, "teacher": CHOSEN * 0}], callback(TeacherChoice([expert]))
    )
    student = Policy().net
    by_hand = lambda x, *_: expert(x[None])[0]  # noqa: E731
    term = slope(term_by_hand(student, by_hand, CHOSEN), student)
    assert_is(found[: len(term)], term)


def test_every_network_follows_the_students_device():
    moved = []

    class Watched(nn.Linear):
        def to(self, device):
            moved.append((self.out_features, torch.device(device)))
            return super().to(device)

    teacher = TeacherChoice([Watched(3, 2).double(), TeacherChoice([Watched(3, 2).double()])])
    fit(Policy(), [{**BATCH, "teacher": CHOSEN * 0}], callback(teacher))
    assert moved == [(2, torch.device("cpu"))] * 2


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_outputs_may_have_an_axis_of_length_one_that_the_students_has_not(order, side):
    column, other = mlp(3, 1, seed=1), mlp(3, 1, seed=2)
    flat = nn.Sequential(other, nn.Flatten(0))
    student = nn.Sequential(mlp(3, 1, seed=3), nn.Flatten(0))
    which = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    how = EXACT if order else {"normalize": "none"}
    term = SobolevTerm(order=order, side=side, **how)

    def derivative(net):
        once = lambda x: net(x[None]).reshape(())  # noqa: E731
        taken = [once, grad(once), hessian(once)][order]
        return vmap(taken)(OBS).detach().reshape(7, -1)

    chosen = torch.where(which[:, None] == 0, derivative(column), derivative(other))
    expected = (derivative(student) - chosen).square().sum(1).mean()
    for teachers in ([column, flat], [column, other]):
        loss = SobolevLoss(TeacherChoice(teachers), term)
        with loss.observe(student):
            student(OBS)
        assert_close(loss(batch=BATCH | {"teacher": which}).loss.detach(), expected)
