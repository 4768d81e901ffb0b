"""What a trained MLP makes of rows on the CPU, by numpy's products as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sksoftrank.modules import MLP
from sksoftrank.modules._layers import Dropout, InputScale
from sksoftrank.training._stack import ACTIVATIONS
from sksoftrank.training._threads import threads_for

_NOTHING = torch.empty(0, device="cpu")


class ForwardMLP:
    """A trained MLP in evaluation mode, without the time that calls of torch take.

    It is cheap to make, and made for each prediction: weights may change between two.

    Parameters
    ----------
    module : MLP
        On the CPU. Weights of the same dtype are used where they lie.
    dtype : torch.dtype
        What it computes in.
    """

    def __init__(self, module: MLP, dtype: torch.dtype) -> None:
        activate = ACTIVATIONS.get(module.activation, (None,))[0]
        self._linear: list[_Linear] = []
        self._steps: list[Callable[[Tensor], Tensor]] = []
        scale: Tensor | None = None
        for layer in _flat(module.body):
            if isinstance(layer, InputScale):
                scale = layer.weight.detach()
            elif isinstance(layer, nn.Linear):
                self._linear.append(_Linear(layer, dtype, scale))
                self._steps.append(self._linear[-1])
                scale = None
            elif isinstance(layer, nn.BatchNorm1d | nn.LayerNorm):
                self._steps.append(_normalization(layer, dtype))
            elif not isinstance(layer, Dropout) and activate is not None:
                self._steps.append(lambda x: activate(x, x))
        self.head = _Linear(module.output, dtype)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Hold the libraries to the threads that a training of such layers takes.

        They don't depend on the rows: two threads for products of many rows gain a
        third on an idle machine, and took 50 times as long as one on a busy one.
        """
        n_weights = max(layer.weight.size for layer in (*self._linear, self.head))
        # A product that overflows is infinite and no more, as torch's is.
        with threads_for(n_weights), torch.inference_mode(), np.errstate(all="ignore"):
            yield

    def embed(self, x: Tensor) -> Tensor:
        """Return the last hidden layer, in memory that the next call fills anew."""
        for step in self._steps:
            x = step(x)
        return x

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, in memory that the next call fills anew."""
        return self.head(self.embed(x))


def _flat(body: nn.Sequential) -> Iterator[nn.Module]:
    """Yield layers, and the factors of those that are products."""
    for layer in body:
        if isinstance(layer, nn.Sequential):
            yield from layer
        else:
            yield layer


class _Linear:
    """A linear layer that writes as many rows as before to the same memory."""

    def __init__(
        self, layer: nn.Linear, dtype: torch.dtype, input_scale: Tensor | None = None
    ) -> None:
        weight = layer.weight.detach().to(dtype)
        if input_scale is not None:
            weight = weight * input_scale.to(dtype)
        self.weight = weight.numpy().T
        bias = layer.bias
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.y = _NOTHING
        self.out = _NOTHING.numpy()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.numpy()
        if len(self.out) != len(rows):
            self.y = x.new_empty(len(rows), self.weight.shape[1])
            self.out = self.y.numpy()
        np.matmul(rows, self.weight, out=self.out)
        return self.y if self.bias is None else self.y.add_(self.bias)


def _normalization(
    layer: nn.BatchNorm1d | nn.LayerNorm, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    scale, shift = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    if isinstance(layer, nn.LayerNorm):
        shape = list(layer.normalized_shape)
        return partial(
            F.layer_norm,
            normalized_shape=shape,
            weight=scale,
            bias=shift,
            eps=layer.eps,
        )
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = scale * (layer.running_var.to(dtype) + layer.eps).rsqrt()
    shift = shift - layer.running_mean.to(dtype) * scale
    return lambda x: torch.addcmul(shift, x, scale, out=x)
