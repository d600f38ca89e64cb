"""Which way a student is taught: by what its teacher answers between states, or by a trial."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from lightning_sobolev.experiments.distillation import decide
from lightning_sobolev.experiments.distillation.decide import Decision, best_of, share_of_queries

CONFIG = {
    "where": "auto",
    "query_share": None,
    "match": "identity",
    "seed": 0,
    "steps": 100,
    "teacher": {"_target_": f"{__name__}.taught", "frequency": 0.0},
    "data": {"batch_size": 10},
    "module": {"queries": "something"},
    "sobolev": {"callback": {"a": 1}},
    "score": {"metric": "val/kl", "mode": "min"},
}


class Sines(nn.Module):
    """Linear for the frequency 0, constant for none; the faster the less a derivative tells."""

    def __init__(self, frequency):
        super().__init__()
        self.frequency = frequency

    def forward(self, x):
        if math.isnan(self.frequency):
            return 0.0 * x.sum(1)
        return x.sum(1) if self.frequency == 0 else (self.frequency * x).sin().sum(1)


def taught(frequency):
    from lightning_sobolev import NetworkTeacher

    return NetworkTeacher(Sines(frequency))


def data(num_states=50):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(num_states, 4, generator=generator)
    return SimpleNamespace(
        setup=lambda _: None, num_train_states=num_states, states=lambda count: x[:count]
    )


def settings(num_states=50, decision=None, **changes):
    cfg = OmegaConf.merge(CONFIG, changes)
    return (decision or Decision()).settings(cfg, data(num_states))


def with_trials(monkeypatch, scores):
    asked = []

    def trial(cfg, steps):
        asked.append((cfg.where, steps))
        return scores[cfg.where]

    monkeypatch.setattr(decide, "_trial", trial)
    return asked


@pytest.mark.parametrize(("frequency", "way"), [(0.0, "stored"), (1.0, "stored"), (9.0, "queries")])
def test_what_derivatives_say_between_states_decides(frequency, way, caplog):
    with caplog.at_level(logging.INFO):
        found = settings(teacher={"frequency": frequency})
    assert found == {"where": way, "query_share": 0.75}
    (line,) = caplog.messages
    assert line.startswith(f"where: {way} (the teacher's derivatives explain ")
    assert ("75% of each batch are queries: each state is seen 20 times" in line) == (
        way != "stored"
    )


@pytest.mark.parametrize(
    ("scores", "way"),
    [
        ({"values": 1.0, "stored": 0.9, "queries": 0.8}, "queries"),
        ({"values": 1.0, "stored": 0.9, "queries": 1.2}, "stored"),
        ({"values": 1.0, "stored": 0.99, "queries": 1.5}, "values"),
        ({"values": 1.0, "stored": 1.5, "queries": float("nan")}, "values"),
    ],
)
def test_where_they_leave_it_open_a_trial_does(scores, way, monkeypatch, caplog):
    asked = with_trials(monkeypatch, scores)
    with caplog.at_level(logging.INFO):
        assert settings(teacher={"frequency": 1.8})["where"] == way
    assert asked == [(way, 20) for way in ("values", "stored", "queries")]
    assert "val/kl after a trial of 20 steps: values 1, stored" in caplog.text


def test_what_asks_for_no_queries_is_not_tried(monkeypatch):
    asked = with_trials(monkeypatch, {"values": 1.0, "stored": 0.9})
    assert settings(teacher={"frequency": 1.8}, query_share=0.0)["where"] == "stored"
    assert [way for way, _ in asked] == ["values", "stored"]


def test_without_foresight_or_with_nothing_to_foresee_a_trial_decides(monkeypatch):
    asked = with_trials(monkeypatch, {"values": 1.0, "stored": 0.5, "queries": 0.7})
    trial = Decision(foresight=False, share_of_steps=0.05)
    assert settings(decision=trial)["where"] == "stored"
    assert asked[0] == ("values", 5)
    with_trials(monkeypatch, {"values": 1.0, "stored": 0.7, "queries": 0.5})
    assert settings(teacher={"frequency": math.nan})["where"] == "queries"


def test_what_is_asked_for_is_done(monkeypatch):
    with_trials(monkeypatch, {})
    for way in decide.WAYS:
        assert settings(where=way)["where"] == way
    assert settings(where="queries", query_share=0.1)["query_share"] == 0.1
    assert settings(sobolev={"callback": None})["where"] == "values"
    assert settings(where="queries", sobolev={"callback": None})["where"] == "queries"
    assert settings(where="stored", sobolev={"callback": None})["where"] == "values"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"where": "somewhere"}, r"where must be auto or one of .*, got 'somewhere'"),
        ({"query_share": 1.5}, r"query_share must be null or in \[0, 1\], got 1.5"),
        ({"query_share": -0.1}, r"query_share must be null or in \[0, 1\], got -0.1"),
        ({"query_share": "half"}, r"query_share must be null or in \[0, 1\], got 'half'"),
        ({"score": None}, r"score must be {metric: \.\.\., mode: min or max}, got None"),
        ({"score": {"mode": "up"}}, r"score must be .*got .*up"),
    ],
)
def test_what_cannot_be_decided_by_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        Decision().check(OmegaConf.merge(CONFIG, changes))


def test_a_decision_of_its_own_settings_is_refused():
    with pytest.raises(ValueError, match=r"share_of_steps must be in \(0, 1\], got 0"):
        Decision(share_of_steps=0)
    with pytest.raises(ValueError, match=r"num_states must be at least 2, got 1"):
        Decision(num_states=1)


def test_no_queries_are_called_so(caplog):
    with caplog.at_level(logging.INFO):
        settings(where="queries", query_share=0)
    text = "where: queries (as it was asked for; no queries: each state is seen 20 times)"
    assert caplog.messages == [text]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ("queries", 0.3)),
        ({"where": "stored"}, ("stored", 0.3)),
        ({"query_share": 0.1}, ("queries", 0.1)),
        ({"sobolev": {"callback": None}}, ("values", 0.3)),
    ],
)
def test_an_earlier_decision_holds_for_what_is_open(changes, found, monkeypatch):
    with_trials(monkeypatch, {})  # none is asked for
    cfg = OmegaConf.merge(CONFIG, {"teacher": {"frequency": 1.8}}, changes)
    earlier = {"where": "queries", "query_share": 0.3, "cpu_seconds_decide": 7.0}
    again = Decision().settings(cfg, data(), earlier)
    assert (again["where"], again["query_share"]) == found


def test_a_damaged_earlier_decision_is_made_again():
    cfg = OmegaConf.create(CONFIG)
    assert Decision().settings(cfg, data(), {"where": "?"}) == settings()


@pytest.mark.parametrize(
    ("mode", "scores", "way"),
    [
        ("max", (1.0, 1.1, 1.2), "queries"),
        ("max", (1.0, 1.02, 0.5), "values"),  # too little is won
        ("max", (-1.0, -0.5, -2.0), "stored"),
        ("min", (-1.0, -1.02, -1.01), "values"),
        ("min", (-1.0, -1.1, -1.01), "stored"),
        ("min", (math.nan, 1.0, 2.0), "stored"),
        ("max", (0.0, math.inf, math.nan), "values"),
        ("min", (math.nan, math.nan, math.nan), "values"),
    ],
)
def test_the_best_score_wins_if_it_is_finite(mode, scores, way):
    assert best_of(dict(zip(decide.WAYS, scores, strict=True)), mode) == way


def test_the_share_falls_with_the_passes():
    passes = [0.5, 9.9, 10, 19.9, 20, 1000]
    assert [share_of_queries(p) for p in passes] == [0, 0, 0.5, 0.5, 0.75, 0.75]
    # 100 steps of 10 states
    assert [settings(num_states=n)["query_share"] for n in (110, 100, 50)] == [0.0, 0.5, 0.75]


def test_a_decision_is_applied_to_a_copy():
    cfg, how = OmegaConf.create(CONFIG), Decision()
    values = how.applied(cfg, {"where": "values", "query_share": 0.75})
    assert (values.where, values.sobolev.callback) == ("values", None)
    unasked = how.applied(cfg, {"where": "queries", "query_share": 0.0})
    assert (unasked.module.queries, unasked.sobolev.callback) == (None, {"a": 1})
    assert how.applied(cfg, {"where": "queries", "query_share": 0.5}).module.queries == "something"
    assert cfg == OmegaConf.create(CONFIG)


@pytest.mark.parametrize("game", ["pong", "breakout", "space_invaders"])
def test_every_way_of_every_game_can_be_built(game, tmp_path):
    from tests.conf.test_every_config import composed

    cfg = composed([f"+experiment=distill_{game}"], tmp_path)
    decision = instantiate(cfg.decide)
    for way in decide.WAYS:
        found = decision.applied(cfg, {"where": way, "query_share": 0.75})
        queries = instantiate(found.module).queries
        assert (queries is not None) == (way == "queries")
        if way == "values":
            assert found.sobolev.callback is None
            continue
        (term,) = instantiate(found.sobolev.callback).spec.terms
        expected = cfg.ways[way]
        assert (term.rows, term.every_n_steps) == (expected.rows, expected.every_n_steps)
        assert term.weight_at(0) > term.weight_at(cfg.steps - 1) >= 0.0
        assert queries is None or queries.share == 0.75


def built(width, queries):
    torch.rand(3)  # what is drawn here is none of the run's business
    return nn.Linear(width, 1, bias=queries is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": "somewhere"}, r"where must be auto or one of .*, got 'somewhere'"),
        ({"query_share": 1.5}, r"query_share must be null or in \[0, 1\], got 1.5"),
        ({"module": {"width": -1}}, r"negative dimension"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_recorded(changes, message):
    module = {"_target_": f"{__name__}.built", "width": 2}
    cfg = OmegaConf.merge(CONFIG, {"module": module}, changes)
    with pytest.raises((ValueError, InstantiationException), match=message):
        Decision().check(cfg)


def test_a_check_leaves_random_numbers_alone():
    module = {"_target_": f"{__name__}.built", "width": 2}
    before = torch.get_rng_state()
    Decision().check(OmegaConf.merge(CONFIG, {"module": module}))
    assert torch.equal(torch.get_rng_state(), before)
