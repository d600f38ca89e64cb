"""Laws that hold for every function, as assertions."""

import torch
from torch.testing import assert_close


def assert_matches_dense(rows, jacobian, cotangents):
    """rows = u^T J with J the dense Jacobian [batch, *out, *in]."""
    batch, size = cotangents.shape[1], cotangents[0, 0].numel()
    flat = torch.einsum(
        "pbo,boi->pbi",
        cotangents.reshape(len(cotangents), batch, size),
        jacobian.reshape(batch, size, -1),
    )
    assert_close(rows.reshape(flat.shape), flat)


def assert_unbiased(samples, expected, sigmas=4.0):
    """The mean over the first axis agrees with expected to a few standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    excess = (samples.mean(0) - expected).abs() - sigmas * error - 1e-12
    assert_close(excess.clamp_min(0.0), torch.zeros_like(excess), atol=0.0, rtol=0.0)
