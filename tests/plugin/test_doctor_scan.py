"""What the doctor says of the layers it finds."""

import pytest
from torch import nn

from lightning_sobolev import SobolevLoss, SobolevTerm
from lightning_sobolev.doctor.layers import Facts, scan
from lightning_sobolev.observe.options import ObserveOptions

VJP, JVP, CURVED = SobolevTerm(), SobolevTerm(side="tangent"), SobolevTerm(order=2)


def scanned(student, term=VJP, **options):
    loss = SobolevLoss(nn.Linear(4, 4), term)
    recorder = loss.recorder_of(student, None, ObserveOptions(**options))
    return scan(student, Facts.of(loss, recorder))


def remarks(layer, **options):
    found = scanned(nn.Sequential(nn.Linear(4, 4), layer), **options)
    return [(finding.name, finding.kind, finding.remark) for finding in found]


@pytest.mark.parametrize(
    ("layer", "options", "text"),
    [
        (nn.BatchNorm1d(4), {}, "rows are coupled in train mode"),
        (nn.LSTM(4, 4), {}, "cuDNN is off in the student"),
        (nn.GRU(4, 4), {"engine": "func", "term": JVP}, "cuDNN is off in the student"),
        (nn.LSTM(4, 4), {"engine": "func", "term": CURVED}, "cuDNN is off in the student"),
        (nn.MultiheadAttention(4, 2), {}, "the math attention kernel is used"),
        (nn.InstanceNorm1d(4), {"term": CURVED}, "written out: the fused norm gives wrong"),
        (nn.Dropout(0.1), {"term": SobolevTerm(rows=0.5)}, "draws its own mask"),
    ],
)
def test_layers_that_need_a_remedy_are_named(layer, options, text):
    (found,) = remarks(layer, **options)
    assert found[:2] == ("1", type(layer).__name__)
    assert text in found[2]


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.ReLU(), {}),
        (nn.GroupNorm(2, 4), {"term": JVP}),
        (nn.LayerNorm(4), {}),
        (nn.InstanceNorm1d(4), {}),
        (nn.BatchNorm1d(4), {"batch_norm": "eval"}),
        (nn.SyncBatchNorm(4), {"batch_norm": "eval"}),
        (nn.BatchNorm1d(4).eval(), {}),
        (nn.BatchNorm1d(4).eval(), {"engine": "func"}),
        (nn.Dropout(0.1), {}),
        (nn.Dropout(0.1), {"batch_norm": "eval"}),  # a replay of all rows draws the same mask
        (nn.Dropout(0.1), {"engine": "func", "term": CURVED}),
        (nn.Dropout(0.0), {"term": SobolevTerm(rows=0.5)}),
    ],
)
def test_layers_that_need_nothing_are_not_named(layer, options):
    assert remarks(layer, **options) == []


@pytest.mark.parametrize(
    ("layer", "options", "text"),
    [
        (nn.SyncBatchNorm(4), {}, "cannot be differentiated twice.*use batch_norm='eval'"),
        (
            nn.BatchNorm1d(4, track_running_stats=False),
            {"batch_norm": "eval"},
            "batch_norm='eval' needs running statistics",
        ),
    ],
)
def test_layers_that_cannot_work_are_refused(layer, options, text):
    with pytest.raises(ValueError, match=text):
        remarks(layer, **options)


def test_many_layers_of_a_kind_make_one_remark():
    net = nn.Sequential(nn.LSTM(4, 4), nn.LSTM(4, 4), nn.GRU(4, 4))
    assert [found.name for found in scanned(net)] == ["0", "2"]
