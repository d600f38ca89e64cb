"""A student of stored answers ends where the student of a present teacher ends."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, StackDataset

from lightning_sobolev import (
    CachedTeacher,
    CacheSettings,
    NetworkTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
    cache_answers,
)
from lightning_sobolev.functional._hashing import hash_words
from lightning_sobolev.functional.projections import counter_draw
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, weights

DRAWS, SEED = 3, 11


class FromDict(Regressor):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class Live:
    """The teacher itself, asked along the directions that a cache would have."""

    allows_unknown = False

    def __init__(self, term):
        self.teacher, self.term = NetworkTeacher(mlp(seed=7).float()), term

    def at(self, x, on, batch=None):
        jet = self.teacher.at(x, on)
        like = x if self.term.side == "tangent" else jet.value

        def drawn(term, counter):
            first = hash_words(counter) % DRAWS
            draws = [(first + n) % DRAWS for n in range(term.num_projections)]
            shape, index = tuple(like.shape[1:]), batch["index"]
            return torch.stack(
                [counter_draw(term.projection, index, shape, seed=SEED, draw=d) for d in draws]
            )

        jet.drawn = drawn
        return jet


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 3, generator=generator), torch.randn(24, 2, generator=generator)


def trained(teacher, term, data, engine="tape"):
    x, y = data
    loader = DataLoader(StackDataset(x=x, y=y, index=range(len(x))), batch_size=8)
    module = FromDict(mlp().float(), lr=0.01)
    spec = SobolevSpec(terms=[term, SobolevTerm(order=0)])
    used = SobolevCallback(teacher, spec, module="net", engine=engine)
    fit(module, loader, used, precision="32-true", max_epochs=3)
    return weights(module)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("rows", [1.0, 0.5])
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_stored_answers_teach_what_the_teacher_teaches(side, rows, engine, data, tmp_path):
    term = SobolevTerm(side=side, projection="rademacher", num_projections=2, rows=rows)
    if engine == "func" and rows == 1.0 and side == "tangent":
        # With tangents alone the func engine pushes them through the step's own forward.
        term = SobolevTerm(side=side, projection="rademacher")
    settings = CacheSettings(side=side, projection="rademacher", num_draws=DRAWS, seed=SEED)
    teacher = NetworkTeacher(mlp(seed=7).float())
    cache_answers(teacher, lambda index: data[0][index], 24, tmp_path / "cache", settings)
    found = trained(CachedTeacher(tmp_path / "cache"), term, data, engine)
    assert_close(found, trained(Live(term), term, data), rtol=1e-4, atol=1e-5)


def test_a_batch_without_numbers_is_refused(data, tmp_path):
    teacher = NetworkTeacher(mlp(seed=7).float())
    cache_answers(teacher, lambda index: data[0][index], 24, tmp_path / "cache")
    loader = DataLoader(StackDataset(x=data[0], y=data[1]), batch_size=8)
    used = SobolevCallback(CachedTeacher(tmp_path / "cache"), module="net")
    with pytest.raises(ValueError, match=r"CachedTeacher\(index='index'\)"):
        fit(FromDict(mlp().float()), loader, used, precision="32-true")
