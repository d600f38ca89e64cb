import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad
from torch.testing import assert_close

from lightning_sobolev.functional.band_limits import kept
from lightning_sobolev.layers import BandLimitedConv1d, BandLimitedConv2d, band_limit
from tests._reference import masked_by_numpy

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),  # torch's own
]

CHOICES = {
    "plain": {"kernel_size": (3, 4)},
    "no bias": {"kernel_size": 3, "bias": False},
    "padded": {"kernel_size": 5, "padding": (2, 1)},
    "same, even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "round": {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    "strides": {"kernel_size": (3, 4), "stride": (2, 3), "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": (2, 3), "padding": "same"},
    "groups": {"kernel_size": 3, "groups": 2, "stride": 2},
    "by channel": {"kernel_size": 3, "groups": 4, "dilation": 2, "padding": 1},
    "as large as the input": {"kernel_size": (11, 14)},
    "of one place": {"kernel_size": 1, "stride": 2},
}


SIGNALS = {
    "signal": {"kernel_size": 5},
    "signal, strides": {"kernel_size": 5, "stride": 3},
    "signal, dilated": {"kernel_size": 5, "dilation": 2, "padding": "same"},
}


def twins(choice):
    torch.manual_seed(0)
    is_signal = choice in SIGNALS
    plain, limited = (nn.Conv1d, BandLimitedConv1d) if is_signal else (nn.Conv2d, BandLimitedConv2d)
    options = {**CHOICES, **SIGNALS}[choice]
    ours, theirs = limited(4, 8, **options), plain(4, 8, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def value_and_derivatives(layer, x):
    """Value, gradients, and the gradients of the input gradient's square."""
    y = layer(x)
    rows = torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()], create_graph=True)
    twice = torch.autograd.grad(rows[0].square().sum(), [x, layer.weight])
    return [y, *rows, *twice]


@pytest.mark.parametrize("choice", [*CHOICES, *SIGNALS])
def test_at_rate_zero_it_is_torchs_own_with_every_derivative(choice, generator):
    ours, theirs = twins(choice)
    size = (23,) if choice in SIGNALS else (11, 14)
    x = torch.randn(2, 4, *size, generator=generator, requires_grad=True)
    for found, expected in zip(
        value_and_derivatives(ours, x), value_and_derivatives(theirs, x), strict=True
    ):
        assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rate", [40.0, 85.0])
def test_a_rate_cuts_the_padded_input_and_nothing_else_changes(rate, generator):
    layer = BandLimitedConv2d(4, 6, (3, 5), padding=(1, 2), stride=(1, 2), rate=rate)
    x = torch.randn(2, 4, 11, 14, generator=generator)
    padded = pad(x, (2, 2, 1, 1))
    low = masked_by_numpy(padded, kept(padded.shape[-2:], rate))
    expected = conv2d(low, layer.weight, layer.bias, stride=(1, 2))
    assert_close(layer(x), expected)


def test_the_gradients_are_band_limited_too(generator):
    layer = BandLimitedConv2d(2, 3, 3, rate=70.0)
    x = torch.randn(1, 2, 12, 15, generator=generator, requires_grad=True)
    (row,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    assert_close(masked_by_numpy(row, kept((12, 15), 70.0)), row)
    assert row.abs().max() > 1e-3


def stored(layer, x):
    """Bytes that the forward pass keeps, whole storages even of small views."""
    sizes = {}

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("kind", "size"), [(BandLimitedConv1d, (500,)), (BandLimitedConv2d, (30, 33))]
)
def test_what_is_cut_is_not_stored(kind, size, generator):
    x = torch.randn(8, 4, *size, generator=generator, requires_grad=True)
    # torch keeps the real input of a transform, whatever becomes of the spectrum
    whole, cut = (stored(kind(4, 4, 3, rate=rate), x) - 8 * x.numel() for rate in (0.0, 85.0))
    assert 0 < cut < 0.2 * whole


def test_energy_keeps_as_much_as_each_input_needs():
    place = torch.arange(16) * 2 * torch.pi / 16
    slow, fast = (torch.cos(k * place)[None, None] for k in (1, 6))
    layer = BandLimitedConv1d(1, 1, 1, bias=False, energy=99.0)
    nn.init.ones_(layer.weight)
    assert_close(layer(slow), slow)
    assert_close(layer(slow + 0.05 * fast), slow)
    assert_close(layer(slow + fast), slow + fast)


def test_one_picture_without_a_batch():
    layer = BandLimitedConv2d(3, 5, 3)
    x = torch.ones(3, 6, 7)
    assert_close(layer(x), layer(x[None])[0])


def test_half_precision_is_computed_in_single():
    layer = BandLimitedConv2d(1, 1, 3, rate=50.0).bfloat16()
    x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(layer.float()(x.float()).bfloat16(), y)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, groups=1))


def test_a_network_is_converted_and_given_back(generator):
    student, plain = net(), net()
    called = []
    student[0].register_forward_hook(lambda *_: called.append(1))
    before = dict(student.named_parameters())
    x = torch.randn(2, 1, 9, 12, generator=generator)
    assert band_limit(student, 60.0) is student
    assert [type(m) for m in student[::2]] == [BandLimitedConv2d] * 2
    limited = student(x)
    assert (limited - plain(x)).abs().max() > 1e-2
    band_limit(student, 90.0)
    assert student[2].rate == 90.0
    band_limit(student, energy=95.0)
    assert (student[2].rate, student[2].energy) == (0.0, 95.0)
    band_limit(student)
    assert [type(m) for m in student[::2]] == [nn.Conv2d] * 2
    assert repr(student) == repr(plain)
    assert_close(student(x), plain(x))
    assert len(called) == 2
    after = dict(student.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


class Own(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv3d(1, 1, 1), "Conv3d"),
        (nn.ConvTranspose2d(1, 1, 1), "ConvTranspose2d"),
        (nn.LazyConv2d(1, 1), "LazyConv2d"),
        (Own(1, 1, 1), "Own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_converted_is_named_and_nothing_is_changed(layer, kind):
    student = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(layer))
    with pytest.raises(ValueError, match=rf"layer '1.0' must be an nn.Conv1d or .*, got {kind}"):
        band_limit(student, 50.0)
    assert type(student[0]) is nn.Conv2d


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="module must contain convolutions, got Linear with none"):
        band_limit(nn.Linear(2, 2), 50.0)


def test_what_is_asked_for_is_checked_when_it_is_built():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 100\)"):
        BandLimitedConv1d(1, 1, 3, rate=100.0)
    with pytest.raises(ValueError, match=r"rate must be 0 where energy is given, got 50\.0"):
        band_limit(net(), 50.0, energy=90.0)
    with pytest.raises(ValueError, match=r"energy must be in \(0, 100\]"):
        BandLimitedConv2d(1, 1, 3, energy=0.0)


def test_inputs_that_do_not_fit_are_refused():
    layer = BandLimitedConv2d(3, 1, 5)
    with pytest.raises(
        ValueError, match=r"\[batch, 3, \*space\] with 2 axes .*, got \[2, 4, 9, 9\]"
    ):
        layer(torch.ones(2, 4, 9, 9))
    with pytest.raises(ValueError, match=r"padded, must be at least \[5, 5\], got \[9, 4\]"):
        layer(torch.ones(2, 3, 9, 4))
