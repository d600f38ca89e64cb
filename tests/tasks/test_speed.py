import pytest

from lightning_sobolev.tasks.speed import measure


def test_what_is_measured_adds_up():
    found = measure("pong", num_states=64, num_envs=2, batch_size=8, num_batches=3)
    assert all(value > 0 for value in found.values())
    # one picture a state and the black one, six log-probabilities, 14 bytes, and a little more
    assert 65 * 84 * 84 + 64 * (24 + 14) < found["record_megabytes"] * 1e6 < 470_000
    rate = 64 / found["record_seconds"]
    assert abs(found["record_states_per_second"] - rate) < 1e-6 * rate
    assert found["train_stacks_per_second"] * found["train_seconds"] == pytest.approx(24)
