"""Dense, slow and obvious: what the package is compared with."""

import numpy as np
import torch
from torch.autograd.functional import hessian as _hessian
from torch.autograd.functional import jacobian as _jacobian


def dense_jacobian(fn, x):
    return torch.stack([_jacobian(lambda row: fn(row[None])[0], row) for row in x])


def dense_hessian(fn, x):
    rows = []
    for row in x:
        shape = fn(row[None])[0].shape
        outputs = [
            _hessian(lambda row, i=i: fn(row[None])[0].reshape(-1)[i], row)
            for i in range(shape.numel())
        ]
        rows.append(torch.stack(outputs).reshape(*shape, *row.shape, *row.shape))
    return torch.stack(rows)


def central_difference(fn, x, direction, step=1e-5):
    """Return the derivative of fn at x along a direction of the shape of x."""
    return (fn(x + step * direction) - fn(x - step * direction)) / (2 * step)


def gradient_by_differences(scalar_fn, x, step=1e-5):
    """Return the gradient of a scalar function of one tensor, element by element."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        direction = torch.zeros_like(x)
        direction.view(-1)[i] = 1.0
        gradient.view(-1)[i] = central_difference(scalar_fn, x, direction, step)
    return gradient


def parameter_gradients_by_differences(scalar, module, step=1e-5):
    """Return the gradient of scalar() in every parameter of module, in their order."""
    gradients = []
    for parameter in module.parameters():
        start = parameter.detach().clone()

        def at(value, parameter=parameter):
            parameter.data.copy_(value)
            return scalar().detach()

        gradients.append(gradient_by_differences(at, start, step))
        parameter.data.copy_(start)
    return gradients


def masked_by_numpy(x, counts):
    """Keep the frequencies below ``counts`` of the last axes, by a mask on the whole spectrum."""
    axes = tuple(range(-len(counts), 0))
    spectrum = np.fft.fftn(x.numpy(), axes=axes)
    for axis, count in zip(axes, counts, strict=True):
        size = x.shape[axis]
        cycles = np.abs(np.rint(np.fft.fftfreq(size) * size))
        spectrum = spectrum * (cycles < count).reshape(-1, *[1] * (-1 - axis))
    return torch.from_numpy(np.fft.ifftn(spectrum, axes=axes).real)
