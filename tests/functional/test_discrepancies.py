import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_sobolev.functional.discrepancies import (
    DISCREPANCIES,
    POLICY_LOSSES,
    cosine,
    cross_entropy,
    huber,
    kl,
    l1,
    product,
    reverse_kl,
    squared,
)
from tests._reference import gradient_by_differences


@pytest.fixture(params=DISCREPANCIES)
def discrepancy(request):
    return DISCREPANCIES[request.param]


@pytest.fixture(params=[(), (1,), (5,), (2, 3)], ids=str)
def pair(request, generator):
    shape = (4, 3, *request.param)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_distance_to_itself_is_zero_with_zero_gradient(discrepancy, pair):
    student = pair[0].clone().requires_grad_()
    distance = discrepancy(student, pair[0])
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    assert_close(distance, torch.zeros_like(distance), atol=1e-14, rtol=0.0)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-14, rtol=0.0)


def test_every_row_stands_alone(discrepancy, pair):
    together = discrepancy(*pair)
    several = slice(None) if discrepancy is product else slice(1, 2)  # products are of several
    alone = discrepancy(*(t[several, 2:3] for t in pair))
    assert_close(together[several, 2:3], alone)


def test_gradient_is_the_finite_difference(discrepancy, pair):
    student = pair[0].clone().requires_grad_()
    (ours,) = torch.autograd.grad(discrepancy(student, pair[1]).sum(), student)
    expected = gradient_by_differences(lambda s: discrepancy(s, pair[1]).sum(), pair[0], 1e-6)
    assert_close(ours, expected, atol=1e-7, rtol=1e-6)


def test_elementwise_distances_are_those_of_torch(pair):
    for ours, theirs in (
        (squared, F.mse_loss),
        (l1, F.l1_loss),
        (
            lambda s, t: huber(s, t, delta=0.7),
            lambda s, t, reduction: F.huber_loss(s, t, reduction=reduction, delta=0.7),
        ),
    ):
        expected = theirs(*pair, reduction="none").reshape(4, 3, -1).sum(-1)
        assert_close(ours(*pair), expected)


def test_cosine_is_one_minus_the_cosine(pair):
    student, target = (t.reshape(4, 3, -1) for t in pair)
    assert_close(cosine(*pair), 1 - F.cosine_similarity(student, target, dim=-1))


@pytest.mark.parametrize("scale", [1e-100, 1e-3, 1e3, 1e100])
def test_cosine_does_not_depend_on_length(scale, pair):
    assert_close(cosine(scale * pair[0], pair[1] / scale), cosine(*pair))


def test_cosine_of_zero_vectors():
    zero, other = torch.zeros(1, 1, 3), torch.ones(1, 1, 3)
    assert_close(cosine(zero, other), torch.ones(1, 1))
    assert_close(cosine(other, zero), torch.ones(1, 1))
    assert_close(cosine(zero, zero), torch.zeros(1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_finite_everywhere(discrepancy, dtype):
    special = [0.0, -0.0, 1.0, -1.0, 1e-30, 1e-45, 1e-19, 1e15]
    rows = torch.tensor([[a, b] for a in special for b in special], dtype=dtype)
    student = rows.repeat_interleave(len(rows), 0)[None].requires_grad_()
    target = rows.repeat(len(rows), 1)[None]
    if discrepancy is product:
        student, target = (t.detach().expand(2, -1, -1) for t in (student, target))
        student.requires_grad_()
    distance = discrepancy(student, target)
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()


def test_the_mean_product_is_an_unbiased_square(pair):
    """By definition: the mean over ordered pairs of different projections."""
    error = (pair[0] - pair[1]).reshape(4, 3, -1)
    pairs = [(p, q) for p in range(4) for q in range(4) if p != q]
    expected = sum((error[p] * error[q]).sum(-1) for p, q in pairs) / len(pairs)
    assert_close(product(*pair).mean(0), expected)
    with pytest.raises(ValueError, match=r"num_projections must be at least 2 .*'product', got 1"):
        product(pair[0][:1], pair[1][:1])


def test_shapes_that_would_broadcast_are_errors(discrepancy):
    with pytest.raises(ValueError, match=r"same shape, got \[1, 3, 1\] and \[1, 3\]"):
        discrepancy(torch.ones(1, 3, 1), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"same shape, got \[3, 1\] and \[3\]"):
        kl(torch.ones(3, 1), torch.ones(3))


def test_huber_wants_a_positive_delta():
    with pytest.raises(ValueError, match=r"delta must be positive, got 0.0"):
        huber(torch.ones(1, 1), torch.ones(1, 1), delta=0.0)


def test_kl_leaves_out_classes_that_the_teacher_excludes():
    teacher = torch.tensor([[0.0, -math.inf]])
    student = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log().requires_grad_()
    divergence = kl(student, teacher.expand(2, 2))
    assert_close(divergence, torch.tensor([math.log(2), 0.0]))
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert_close(gradient, torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]))


def test_kl_is_infinite_where_the_student_excludes_what_the_teacher_does():
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.5, 0.5]]).log()
    assert_close(kl(student, teacher), torch.tensor([math.inf]))


@pytest.fixture(params=POLICY_LOSSES)
def policy_loss(request):
    return POLICY_LOSSES[request.param]


def gradient_in_logits(loss, logits, teacher):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits.log_softmax(-1), teacher).sum(), logits)[0]


def test_gradients_of_policy_losses_are_their_closed_forms(generator):
    logits, other = torch.randn(2, 5, 4, generator=generator)
    log_q, log_p = logits.log_softmax(-1), other.log_softmax(-1)
    q, p = logits.softmax(-1), other.softmax(-1)
    for loss in (kl, cross_entropy):
        assert_close(gradient_in_logits(loss, logits, log_p), q - p)
    excess = log_q - log_p
    expected = q * (excess - (q * excess).sum(-1, keepdim=True))
    assert_close(gradient_in_logits(reverse_kl, logits, log_p), expected)


def test_at_the_teacher_no_policy_loss_pulls_and_divergences_are_zero(policy_loss, generator):
    logits = torch.randn(5, 4, generator=generator)
    teacher = logits.log_softmax(-1)
    gradient = gradient_in_logits(policy_loss, logits, teacher)
    assert_close(gradient, torch.zeros(5, 4), atol=1e-15, rtol=0.0)
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    expected = entropy if policy_loss is cross_entropy else torch.zeros(5)
    assert_close(policy_loss(teacher, teacher), expected, atol=1e-15, rtol=1e-12)


def test_policy_losses_are_those_of_torch(generator):
    student, teacher = torch.randn(2, 6, 4, generator=generator).log_softmax(-1)
    divergence = lambda q, p: F.kl_div(q, p, reduction="none", log_target=True).sum(-1)  # noqa: E731
    assert_close(kl(student, teacher), divergence(student, teacher))
    assert_close(reverse_kl(student, teacher), divergence(teacher, student))
    expected = F.cross_entropy(student, teacher.exp(), reduction="none")
    assert_close(cross_entropy(student, teacher), expected)


def test_reverse_kl_is_infinite_where_the_teacher_excludes_what_the_student_does():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, -math.inf]])
    assert_close(reverse_kl(student, teacher), torch.tensor([math.inf]))
    assert_close(reverse_kl(teacher, student), torch.tensor([math.log(2)]))
