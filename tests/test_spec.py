import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import Cosine, Linear, SobolevSpec, SobolevTerm, Step
from lightning_sobolev.spec import Schedule


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("order", 3, r"order must be 0, 1 or 2, got 3"),
        ("order", "1", r"order must be 0, 1 or 2, got '1'"),
        ("weight", -1.0, r"weight must be a finite number >= 0 or a schedule, got -1.0"),
        ("weight", math.nan, r"weight must be a finite number >= 0 or a schedule, got nan"),
        ("weight", "big", r"weight must be .* got 'big'"),
        ("weight", True, r"weight must be .* got True"),
        ("side", "left", r"side must be 'cotangent' or 'tangent', got 'left'"),
        ("projection", "cube", r"projection must be one of \('sphere', .*, got 'cube'"),
        ("num_projections", 0, r"num_projections must be at least 1 or None, got 0"),
        ("num_projections", "all", r"num_projections must be at least 1 or None, got 'all'"),
        ("num_projections", None, r"projection must be 'basis' when num_projections is None"),
        ("discrepancy", "l7", r"discrepancy must be one of \('squared', .*, got 'l7'"),
        ("normalize", "student", r"normalize must be one of .*'elements', 'none'.*, got 'student'"),
        ("rows", 0.0, r"rows must be in \(0, 1\], got 0.0"),
        ("every_n_steps", 0, "every_n_steps must be at least 1, got 0"),
        ("rows", 1.5, r"rows must be in \(0, 1\], got 1.5"),
        ("rows", "half", r"rows must be in \(0, 1\], got 'half'"),
        ("band", -1, r"band must be in \[0, 100\)"),
        ("band", "50", r"band must be in \[0, 100\)"),
        ("name", "total", r"name must be a word other than 'total', got 'total'"),
        ("name", "", r"name must be a word"),
    ],
)
def test_a_field_out_of_range_says_what_was_expected_and_what_came(field, value, text):
    with pytest.raises(ValueError, match=text):
        SobolevTerm(**{field: value})


def test_options_of_a_term_that_exclude_each_other():
    with pytest.raises(ValueError, match="band must be None with order 0"):
        SobolevTerm(order=0, band=50.0)
    with pytest.raises(ValueError, match="discrepancy must be 'squared' with normalize='elements'"):
        SobolevTerm(normalize="elements", discrepancy="l1")


def test_terms_and_specs_are_frozen_and_hashable():
    term = SobolevTerm(weight=Step(values=[1.0, 0.5], boundaries=[10]))
    spec = SobolevSpec(terms=[term])
    assert len({term, SobolevTerm(weight=Step(values=[1.0, 0.5], boundaries=[10]))}) == 1
    assert spec.terms == (term,)
    hash(spec)
    with pytest.raises(dataclasses.FrozenInstanceError):
        term.weight = 2.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"terms": []}, r"terms must be at least one SobolevTerm, got \(\)"),
        ({"terms": ["order_1"]}, r"terms must be SobolevTerm objects, got 'order_1'"),
        (
            {"terms": [SobolevTerm(), SobolevTerm(side="tangent")]},
            r"terms must be named differently .set name=.*, got \['order_1', 'order_1'\]",
        ),
        ({"on": "argmax"}, r"on must be one of \('identity', .*\) or a callable, got 'argmax'"),
        ({"on": 3}, r"on must be one of"),
    ],
)
def test_a_spec_that_cannot_be_meant(options, text):
    with pytest.raises(ValueError, match=text):
        SobolevSpec(**options)


def test_the_default_spec_is_one_projection_of_the_jacobian():
    (term,) = SobolevSpec().terms
    assert (term.order, term.num_projections, term.weight) == (1, 1, 1.0)
    assert (term.key, SobolevSpec().max_order) == ("order_1", 1)
    assert SobolevSpec(terms=[SobolevTerm(), SobolevTerm(order=2)]).max_order == 2
    assert SobolevTerm(name="forces").key == "forces"


def test_output_maps():
    y = torch.tensor([[1.0, 3.0]])
    for name in ("log_softmax", "softmax"):
        assert_close(SobolevSpec(on=name).output_map(y), getattr(torch, name)(y, dim=-1))
    assert SobolevSpec().output_map(y) is y
    assert_close(SobolevSpec(on=torch.square).output_map(y), y.square())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(1.0, 0.0, 10), {0: 1.0, 5: 0.5, 10: 0.0, 99: 0.0}),
        (Linear(0.0, 3.0, 3), {0: 0.0, 1: 1.0, 3: 3.0, 4: 3.0}),
        (Cosine(1.0, 0.0, 4), {0: 1.0, 1: 0.5 + 0.25 * 2**0.5, 2: 0.5, 4: 0.0, 9: 0.0}),
        (Cosine.within(0.5, 8, start=1.0), {0: 1.0, 2: 0.5, 4: 0.0, 7: 0.0}),
        (Linear.within(0.25, 10, start=2.0, end=1.0), {0: 2.0, 1: 1.5, 2: 1.0, 9: 1.0}),
        (Linear.within(0.01, 10, start=2.0), {0: 2.0, 1: 0.0}),
        (Step([1.0, 0.5, 0.0], [10, 20]), {0: 1.0, 9: 1.0, 10: 0.5, 19: 0.5, 20: 0.0}),
        (Step([4.0], []), {0: 4.0, 100: 4.0}),
    ],
)
def test_schedules(schedule, expected):
    assert isinstance(schedule, Schedule)
    term = SobolevTerm(weight=schedule)
    for at, weight in expected.items():
        assert term.weight_at(at) == pytest.approx(weight, abs=1e-15)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Linear(math.inf, 0.0, 5), r"start must be a finite number >= 0, got inf"),
        (lambda: Linear(1.0, -2.0, 5), r"end must be a finite number >= 0, got -2.0"),
        (lambda: Cosine(1.0, 0.0, 0), r"steps must be at least 1, got 0"),
        (lambda: Cosine.within(0.0, 10, 1.0), r"share must be positive, got 0.0"),
        (lambda: Step([1.0], [10]), r"values must be one longer than boundaries, got \(1.0,\)"),
        (lambda: Step([1.0, -1.0], [10]), r"values must be finite and >= 0"),
        (lambda: Step([1.0, 1.0, 1.0], [10, 5]), r"boundaries must be strictly increasing"),
        (lambda: Step([1.0, 1.0, 1.0], [5, 5]), r"boundaries must be strictly increasing"),
    ],
)
def test_a_schedule_that_cannot_be_meant(build, text):
    with pytest.raises(ValueError, match=text):
        build()


class Broken:
    def at(self, step):
        return -0.5


def test_a_schedule_of_ones_own_is_checked_when_it_answers():
    term = SobolevTerm(weight=Broken())
    with pytest.raises(ValueError, match=r"weight of order_1 at step 3 must be finite, >= 0"):
        term.weight_at(3)
