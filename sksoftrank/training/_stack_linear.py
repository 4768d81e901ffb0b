"""A linear layer of K networks, forward and backward, by the faster of two libraries.

On the CPU that is numpy's: a call of it costs a third of one of torch's, and on some
CPUs its kernels are twice as fast. Elsewhere it is torch's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


class StackedLinear(ABC):
    """One linear layer of each of K networks.

    Made of weights (K, width, width before), biases (K, 1, width) or None, the
    gradients of both, the output (K, size, width) and the gradient by it, and but for
    the first layer the input (K, size, width before) and the gradient by it.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        weight_grad: Tensor,
        bias_grad: Tensor | None,
        y: Tensor,
        y_grad: Tensor,
        x: Tensor | None,
        x_grad: Tensor | None,
    ) -> None:
        def take(tensor: Tensor | None) -> Any:
            return None if tensor is None else self.as_input(tensor)

        self.weight, self.weight_grad = take(weight), take(weight_grad)
        self.bias, self.bias_grad = take(bias), take(bias_grad)
        self.y, self.y_grad = take(y), take(y_grad)
        self.x, self.x_grad = take(x), take(x_grad)
        self.weight_t, self.y_grad_t = self.weight.swapaxes(1, 2), take(y_grad.mT)
        self.input_scale: Any = None

    def set_input_scale(
        self, scale: Tensor, scale_grad: Tensor, buffers: Sequence[Tensor]
    ) -> None:
        """Let the input be multiplied by `scale` (K, 1, width before).

        By the weights, which are fewer numbers than the rows; `buffers` are two of
        their shape.
        """
        self.input_scale = self.as_input(scale)
        self.input_scale_grad = self.as_input(scale_grad)
        self._scaled, self._product = map(self.as_input, buffers)
        self.weight_t = self._scaled.swapaxes(1, 2)

    def forward(self) -> None:
        """Compute the output."""
        if self.input_scale is not None:
            self._multiply(self.weight, self.input_scale, out=self._scaled)
        self._forward()

    def backward(self) -> None:
        """Compute the parameters' gradients and, where asked for, the input's."""
        self._backward()
        if self.bias_grad is not None:
            self._sum_rows(self.y_grad, self.bias_grad)
        if self.input_scale is not None:
            self._multiply(self.weight_grad, self.weight, out=self._product)
            self._sum_rows(self._product, self.input_scale_grad)
            self._multiply(self.weight_grad, self.input_scale, out=self.weight_grad)

    # The library's own product of elements.
    _multiply: Callable[..., Any]

    @staticmethod
    @abstractmethod
    def as_input(x: Tensor) -> Any:
        """Return `x` in the library's own type, in the same memory."""

    @abstractmethod
    def _forward(self) -> None:
        """Compute the output from the weights, transposed, and the bias."""

    @abstractmethod
    def _backward(self) -> None:
        """Compute the gradients by the weights and by the input, if asked for."""

    @staticmethod
    @abstractmethod
    def _sum_rows(a: Any, out: Any) -> None:
        """Sum `a` (K, n, width) over n into `out` (K, 1, width)."""


class NumpyLinear(StackedLinear):
    """By numpy's products."""

    _multiply = staticmethod(np.multiply)

    @staticmethod
    def as_input(x: Tensor) -> Any:
        return x.numpy()

    def _forward(self) -> None:
        np.matmul(self.x, self.weight_t, out=self.y)
        if self.bias is not None:
            np.add(self.y, self.bias, out=self.y)

    def _backward(self) -> None:
        np.matmul(self.y_grad_t, self.x, out=self.weight_grad)
        if self.x_grad is not None:
            np.matmul(self.y_grad, self.weight, out=self.x_grad)

    @staticmethod
    def _sum_rows(a: Any, out: Any) -> None:
        # As a product, which is twice as fast as numpy's own sum.
        np.matmul(_ones(a.shape[1]), a, out=out)


@cache
def _ones(size: int) -> Any:
    return np.ones((1, 1, size), np.float32)


class TorchLinear(StackedLinear):
    """By torch's batched products."""

    _multiply = staticmethod(torch.mul)

    @staticmethod
    def as_input(x: Tensor) -> Any:
        return x

    def _forward(self) -> None:
        if self.bias is None:
            torch.bmm(self.x, self.weight_t, out=self.y)
        else:
            torch.baddbmm(self.bias, self.x, self.weight_t, out=self.y)

    def _backward(self) -> None:
        torch.bmm(self.y_grad_t, self.x, out=self.weight_grad)
        if self.x_grad is not None:
            torch.bmm(self.y_grad, self.weight, out=self.x_grad)

    @staticmethod
    def _sum_rows(a: Any, out: Any) -> None:
        torch.sum(a, 1, keepdim=True, out=out)
