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
from lightning_sobolev.functional.projections import counter_draw, hash_words
from tests.plugin._loops import StepDraws, by_hand
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, weights

DRAWS, SEED = 3, 11


class FromDict(Regressor):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class StoredDraws:
    """The directions that a cache has, in an order of batches that nobody shuffles."""

    def __init__(self, *words):
        self.plain, self.counter, self.chosen = StepDraws(*words), words[-1], slice(None)

    def rows(self, fraction, size):
        self.chosen = self.plain.rows(fraction, size)
        return self.chosen

    def stored(self, index, term, like):
        numbers = (torch.arange(8) + 8 * (self.counter % 3))[self.chosen]
        first = hash_words(self.counter) % DRAWS
        draws = [(first + n) % DRAWS for n in range(term.num_projections)]
        shape, kind = tuple(like.shape[1:]), term.projection
        return torch.stack([counter_draw(kind, numbers, shape, seed=SEED, draw=d) for d in draws])

    cotangents = tangents = stored


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 3, generator=generator), torch.randn(24, 2, generator=generator)


@pytest.mark.parametrize(
    ("side", "rows", "engine", "count"),
    [
        ("cotangent", 1.0, "tape", 2),
        ("cotangent", 0.5, "func", 2),
        ("tangent", 0.5, "tape", 2),
        # With tangents alone the func engine pushes them through the step's own forward.
        ("tangent", 1.0, "func", 1),
    ],
)
def test_stored_answers_teach_what_the_teacher_teaches(side, rows, engine, count, data, tmp_path):
    term = SobolevTerm(side=side, projection="rademacher", num_projections=count, rows=rows)
    settings = CacheSettings(side=side, projection="rademacher", num_draws=DRAWS, seed=SEED)
    teacher, (x, y) = mlp(seed=7).float(), data
    cache_answers(NetworkTeacher(teacher), lambda i: x[i], 24, tmp_path / "cache", settings)
    loader = DataLoader(StackDataset(x=x, y=y, index=range(len(x))), batch_size=8)
    module, spec = FromDict(mlp().float(), lr=0.01), SobolevSpec(terms=[term])
    used = SobolevCallback(CachedTeacher(tmp_path / "cache"), spec, module="net", engine=engine)
    fit(module, loader, used, precision="32-true", max_epochs=3)
    batches = 3 * list(zip(x.split(8), y.split(8), strict=True))
    options = {"net": mlp().float(), "teacher": teacher, "lr": 0.01, "draws": StoredDraws}
    assert_close(weights(module), by_hand(batches, term, **options), rtol=1e-4, atol=1e-5)


def test_a_batch_without_numbers_is_refused(data, tmp_path):
    teacher = NetworkTeacher(mlp(seed=7).float())
    cache_answers(teacher, lambda index: data[0][index], 24, tmp_path / "cache")
    loader = DataLoader(StackDataset(x=data[0], y=data[1]), batch_size=8)
    used = SobolevCallback(CachedTeacher(tmp_path / "cache"), module="net")
    with pytest.raises(ValueError, match=r"CachedTeacher\(index='index'\)"):
        fit(FromDict(mlp().float()), loader, used, precision="32-true")
