"""One error, before anything is lost."""

import pytest
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback
from tests.plugin._students import mlp
from tests.plugin._trainers import fit, points, weights


def refuses(student, text, /, error=ValueError, **options):
    """Fitting raises before any weight has moved, and leaves no trace."""
    before, trace = weights(student), set(vars(student))
    options = {"teacher": mlp(seed=7), **options}
    with pytest.raises(error, match=text):
        fit(student, points(), SobolevCallback(**options))
    assert_close(weights(student), before, rtol=0, atol=0)
    assert set(vars(student)) - {"_hparams"} == trace  # Lightning's own
