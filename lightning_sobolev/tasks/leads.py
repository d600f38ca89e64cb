"""Where a student disagrees with its teacher: among close decisions or clear ones.

Where a policy's two best actions are nearly equally likely no choice between them is wrong, yet a
disagreement counts like any other. The *lead* of a state is the probability of the teacher's most
probable action minus that of the second, after merging actions that do the same.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from lightning_sobolev.tasks.layouts import PONG
from lightning_sobolev.tasks.records import Record, find_runs, write_csv
from lightning_sobolev.tasks.stored import chosen_weights, load_module

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_KEYS = ("game", "student", "fraction", "sobolev", "seed")
_COLUMNS = (*_KEYS, "lead_from", "lead_to", "states", "disagreements")


def leads(root: Path, out: Path) -> Path:
    """Write ``NAME_leads.csv``: a line for every distilled student and every range of leads.

    Args:
        root: A folder with finished distillations; their recordings must still be there.
        out: Folder of the table.

    Returns:
        The table.

    Raises:
        ValueError: If there is no finished run.
    """
    records = []
    for run in find_runs(root):
        about = {key: PONG.record(run)[key] for key in _KEYS}
        ours, theirs = answers_on_test_states(run.config, chosen_weights(run.folder))
        groups = run.config.env.same_actions
        records += [{**about, **line} for line in count_by_lead(ours, theirs, groups)]
    out.mkdir(parents=True, exist_ok=True)
    games = sorted({str(record["game"]) for record in records})
    path = out / f"{'_'.join(games)}_leads.csv"
    write_csv(path, _COLUMNS, records)
    return path


def answers_on_test_states(cfg: DictConfig, checkpoint: Path) -> tuple[Tensor, Tensor]:
    """Let a stored student answer all test states.

    Args:
        cfg: The configuration of its run.
        checkpoint: Its weights.

    Returns:
        Log-probabilities of the student and of the teacher, ``[states, actions]`` both.

    Raises:
        FileNotFoundError: If the run's recording is gone.
        ValueError: If it is damaged or another one.
    """
    data, module = instantiate(cfg.data), load_module(cfg, checkpoint)
    # never recorded here: that would replace a recording which other runs may be reading
    data.setup("test")
    with torch.inference_mode():
        answers = [(module(batch["x"]), batch["log_probs"]) for batch in data.test_dataloader()]
    ours, theirs = zip(*answers, strict=True)
    return torch.cat(ours), torch.cat(theirs)


def count_by_lead(
    ours: Float[Tensor, "batch actions"],
    theirs: Float[Tensor, "batch actions"],
    same_actions: Sequence[Sequence[int]] = (),
) -> list[Record]:
    """Count states and disagreements by the teacher's lead.

    Args:
        ours: The student's log-probabilities.
        theirs: The teacher's.
        same_actions: Groups of actions that do the same.

    Returns:
        For every range of :data:`EDGES`, lower end included: ``lead_from``, ``lead_to``,
        ``states`` and ``disagreements``. The last range includes its upper end.
    """
    student, teacher = (_merged(policy.exp(), same_actions) for policy in (ours, theirs))
    best = teacher.topk(2).values
    lead = best[:, 0] - best[:, 1]
    differs = student.argmax(-1) != teacher.argmax(-1)
    bins = torch.bucketize(lead, torch.tensor(EDGES[1:-1], dtype=lead.dtype), right=True)
    return [
        {
            "lead_from": low,
            "lead_to": high,
            "states": int((bins == number).sum()),
            "disagreements": int((differs & (bins == number)).sum()),
        }
        for number, (low, high) in enumerate(pairwise(EDGES))
    ]


def _merged(policy: Tensor, same_actions: Sequence[Sequence[int]]) -> Tensor:
    merged = policy.clone()
    for first, *others in same_actions:
        for other in others:
            merged[:, first] += merged[:, other]
            merged[:, other] = 0.0
    return merged
