import csv

import pytest
import torch

from lightning_sobolev.metrics import ActionDisagreement
from lightning_sobolev.tasks.leads import EDGES, count_by_lead, leads
from tests.scripts.conftest import DISTILLATION

GROUPS = [[0, 1], [2, 4]]


def policies(seed, num_states=500, num_actions=6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_states, num_actions, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def test_ranges_hold_every_state_once_and_add_up_to_the_disagreement():
    ours, theirs = policies(0), policies(1)
    lines = count_by_lead(ours, theirs, GROUPS)
    metric = ActionDisagreement(merge=GROUPS)
    metric.update(ours, theirs)
    assert sum(line["states"] for line in lines) == 500
    assert sum(line["disagreements"] for line in lines) == round(500 * metric.compute().item())


def test_a_state_is_counted_by_the_lead_of_the_merged_best_action():
    # merged probabilities 0.55, 0.35, 0.1: the lead is 0.2, the lower end of its range
    theirs = torch.tensor([[0.30, 0.25, 0.2, 0.1, 0.15, 0.0]], dtype=torch.float64).log()
    ours = torch.tensor([[0.1, 0.1, 0.6, 0.1, 0.05, 0.05]], dtype=torch.float64).log()
    (found,) = [line for line in count_by_lead(ours, theirs, GROUPS) if line["states"]]
    assert found == {"lead_from": 0.2, "lead_to": 0.5, "states": 1, "disagreements": 1}


def test_the_teacher_itself_disagrees_nowhere():
    theirs = policies(2)
    assert not any(line["disagreements"] for line in count_by_lead(theirs, theirs, GROUPS))


def test_a_stored_run_is_read_back_with_the_disagreement_it_reported(finished, tmp_path):
    _, metrics = finished(*DISTILLATION)
    path = leads(tmp_path, tmp_path / "table")
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert path.name == "pong_leads.csv"
    assert [float(line["lead_from"]) for line in lines] == list(EDGES[:-1])
    share = sum(int(line["disagreements"]) for line in lines) / 32
    assert share == metrics["test/merged_disagreement"]
    (recordings := tmp_path / "recordings" / "pong").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(recordings)):
        leads(tmp_path, tmp_path / "table")
    assert not recordings.exists()
