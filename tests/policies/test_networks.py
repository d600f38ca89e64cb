import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import Query
from lightning_sobolev.policies import EnvSettings, PolicyMLP, PolicyStudent, PolicyTeacher
from tests.policies._policies import small_policy

ROWS, OBSERVATIONS = 5, 4


def student(sees, generator):
    seen = OBSERVATIONS if sees is None else len(sees)
    made = PolicyStudent(PolicyMLP([seen, 6], 2), OBSERVATIONS, sees)
    mean, std = torch.rand(2, OBSERVATIONS, generator=generator) + 0.5
    made.standardize_by(mean, std)
    return made.double()


@pytest.mark.parametrize("sees", [None, [2, 0]])
def test_the_teacher_answers_in_what_the_student_sees_and_its_units(sees, generator):
    policy, own = small_policy(OBSERVATIONS, 2).double(), student(sees, generator)
    x = torch.randn(ROWS, OBSERVATIONS, generator=generator, dtype=torch.float64)
    batch = {"x": x, **own.units(ROWS)}
    z = own.standardized(x)
    jet = PolicyTeacher(policy).at(Query(z, batch=batch))
    assert_close(jet.value, policy(x))
    rows = torch.autograd.functional.jacobian(lambda p: policy(p).sum(0), x).movedim(1, 0)
    columns = torch.arange(OBSERVATIONS) if sees is None else torch.tensor(sees)
    expected = rows[:, :, columns] * own.std[columns]
    cotangents = torch.eye(2, dtype=torch.float64)[:, None].expand(-1, ROWS, -1)
    assert_close(jet.vjp(cotangents).movedim(1, 0), expected)


def test_what_the_student_does_not_see_changes_nothing(generator):
    own = student([2, 0], generator)
    x = torch.randn(ROWS, OBSERVATIONS, generator=generator, dtype=torch.float64)
    other = x.clone()
    other[:, [1, 3]] += 1.0
    assert_close(own(x), own(other), rtol=0, atol=0)
    assert not torch.equal(own(x), own(x + 1.0))
    z = (x[:, [2, 0]] - own.mean[[2, 0]]) / own.std[[2, 0]]
    assert_close(own(x), own.body(z))


def test_a_student_for_an_environment_answers_as_its_head_needs():
    for name, outputs in (("CartPole-v1", 2), ("Pendulum-v1", 2), ("Acrobot-v1", 3)):
        made = PolicyStudent.for_env(EnvSettings(name), sees=[0, 1], hidden=[5])
        assert made.body.body[0].in_features == 2
        assert made(torch.zeros(3, len(made.mean))).shape == (3, outputs)


@pytest.mark.parametrize("sees", [[0, 0], [4], [-1], [], [0.5]])
def test_entries_that_are_none_of_the_observation_are_refused(sees):
    with pytest.raises(ValueError, match=r"sees must be different numbers in 0\.\.3, got"):
        PolicyStudent(PolicyMLP([1, 2], 2), OBSERVATIONS, sees)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "sine"}, r"activation must be one of \('tanh'"),
        ({"deviations": "some"}, r"deviations must be one of \('none'"),
        ({"num_outputs": 3, "deviations": "constant"}, "num_outputs must be even for means"),
        ({"sizes": [4, 0]}, "sizes must be widths of at least 1"),
    ],
)
def test_bad_layers_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyMLP(**{"sizes": [4, 8], "num_outputs": 2, **changes})


def test_a_state_belongs_to_its_settings():
    state = small_policy(activation="tanh").state_dict()
    small_policy().load_state_dict(state)
    with pytest.raises(ValueError, match=r"state must be one of .*relu.*got .*tanh"):
        small_policy(activation="relu").load_state_dict(state)


def test_units_of_another_length_are_refused(generator):
    with pytest.raises(ValueError, match=r"std must be of shape \[4\], got \[3\]"):
        student(None, generator).standardize_by(torch.zeros(4), torch.ones(3))
