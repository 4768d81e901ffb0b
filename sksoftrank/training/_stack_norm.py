"""Normalisation in a stack, by the kernels that autograd calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sksoftrank import _torch

_ALL = [True, True, True]


class StackedNormalization:
    """One normalisation layer of each of K networks, forward and backward.

    A kernel takes the scale and shift of one network, so that each has calls of its
    own, on the same memory each time.

    Parameters
    ----------
    layers : sequence of LayerNorm or BatchNorm1d
        The networks' own.
    x, y : Tensor of shape (K, size, width)
        Input and output.
    x_grad, y_grad : Tensor of the same shape
        Gradients by them.
    scale, shift, scale_grad, shift_grad : Tensor of shape (K, 1, width)
        The layers' parameters and their gradients.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        x: Tensor,
        y: Tensor,
        x_grad: Tensor,
        y_grad: Tensor,
        scale: Tensor,
        shift: Tensor,
        scale_grad: Tensor,
        shift_grad: Tensor,
    ) -> None:
        self._forwards: list[Callable[[], Any]] = []
        self._backwards: list[Callable[[], Any]] = []
        for k, layer in enumerate(layers):
            affine = scale[k, 0], shift[k, 0]
            outs = {
                "out0": x_grad[k],
                "out1": scale_grad[k, 0],
                "out2": shift_grad[k, 0],
            }
            if isinstance(layer, nn.LayerNorm):
                shape = list(layer.normalized_shape)
                mean, rstd = x.new_empty(2, x.shape[1], 1)
                forward = partial(
                    _torch.layer_norm,
                    *(x[k], shape, *affine, layer.eps),
                    out0=y[k],
                    out1=mean,
                    out2=rstd,
                )
                backward = partial(
                    _torch.layer_norm_backward,
                    *(y_grad[k], x[k], shape, mean, rstd, *affine, _ALL),
                    **outs,
                )
            else:
                assert isinstance(layer, nn.BatchNorm1d)
                moments = layer.running_mean, layer.running_var
                mean, rstd = x.new_empty(2, x.shape[2])
                forward = partial(
                    _torch.batch_norm,
                    *(x[k], *affine, *moments, True, layer.momentum, layer.eps),
                    out=y[k],
                    save_mean=mean,
                    save_invstd=rstd,
                )
                backward = partial(
                    _torch.batch_norm_backward,
                    *(y_grad[k], x[k], affine[0], *moments, mean, rstd),
                    *(True, layer.eps, _ALL),
                    **outs,
                )
            self._forwards.append(forward)
            self._backwards.append(backward)

    def forward(self) -> None:
        """Fill `y`, and move running moments on."""
        for call in self._forwards:
            call()

    def backward(self) -> None:
        """Fill the gradients by `x`, scale and shift from that by `y`."""
        for call in self._backwards:
            call()
