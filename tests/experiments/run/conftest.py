"""What a run changes in its process is set back."""

import logging
import signal
import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    dtype, handler = torch.get_default_dtype(), signal.getsignal(signal.SIGINT)
    noisy = [
        logging.getLogger(f"lightning.pytorch.{name}")
        for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")
    ]
    filters = [list(logger.filters) for logger in noisy]
    # Lightning ignores Ctrl-C for good behind one that it handled.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        yield
    torch.set_default_dtype(dtype)
    signal.signal(signal.SIGINT, handler)
    for logger, earlier in zip(noisy, filters, strict=True):
        logger.filters[:] = earlier
