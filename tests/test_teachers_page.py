"""The code of docs/teachers.md on teachers that see something else runs, and does what it says."""

import re
from pathlib import Path

import torch
from torch import nn
from torch.func import jacrev, vmap
from torch.testing import assert_close

from lightning_sobolev import Query, Standardizer

PAGE = Path(__file__).parent.parent / "docs" / "teachers.md"
SECTION = PAGE.read_text().split("## Teachers that see something else")[1]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
U = torch.ones(1, 4, 2, dtype=torch.float64)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mlp(inputs, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 2)).double()


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(5)

    def forward(self, obs, privileged):
        assert obs.ndim == 2
        return self.net(torch.cat([obs, privileged], -1))


def units(scale):
    made = Standardizer(3, 2)
    made.x_std, made.y_std = torch.full((3,), scale), torch.full((2,), 3 * scale)
    return made


BATCH = {"obs": numbers(4, 3), "privileged": numbers(4, 2, seed=1), "terrain": torch.arange(4) % 2}


def names():
    made = {
        "torch": torch, "expert": Expert(), "joined_expert": mlp(5), "whole_expert": mlp(3),
        "ours": units(2.0), "theirs": units(0.5), "walk": mlp(3), "climb": mlp(3, seed=1),
    }  # fmt: skip
    found = []
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), made)
        found.append(made["teacher"])
    return made, found


def first(teacher, x, batch, u=U):
    return teacher.at(Query(x, batch=batch)).vjp(u)[0]


def by_hand(fn, *inputs):
    return vmap(jacrev(lambda *row: fn(*[one[None] for one in row])[0]))(*inputs).sum(1)


def test_every_teacher_of_the_page_answers_as_it_says():
    made, (apart, joined, columns, converted, choice, recurrent) = names()
    obs, hidden = BATCH["obs"], BATCH["privileged"]
    expert, whole = made["expert"], made["whole_expert"]
    assert_close(first(apart, obs, BATCH), by_hand(expert, obs, hidden))
    assert_close(first(joined, obs, BATCH), by_hand(expert, obs, hidden))
    assert_close(first(columns, obs[:, [0, 2]], BATCH), by_hand(whole, obs)[:, [0, 2]])
    # z = x / 2 and the teacher's x / 0.5 = 4 z; of the outputs 1.5 y / 6.
    expected = by_hand(lambda z: whole(4.0 * z) / 4.0, obs)
    assert_close(first(converted, obs, BATCH), expected)
    ways = [by_hand(made[name], obs) for name in ("walk", "climb")]
    assert_close(
        first(choice, obs, BATCH), torch.where(BATCH["terrain"][:, None] == 1, *ways[::-1])
    )
    sequences = {
        "obs": obs[:, None].expand(-1, 6, -1),
        "privileged": hidden[:, None].expand(-1, 6, -1),
    }
    u = torch.ones(1, 4, 6, 2, dtype=torch.float64)
    found = first(recurrent, sequences["obs"], sequences, u)
    assert_close(found, by_hand(expert, obs, hidden)[:, None].expand(-1, 6, -1))
