"""K networks of one shape as two matrices, and their forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sksoftrank import _torch
from sksoftrank.modules import MLP
from sksoftrank.modules._layers import Dropout, InputScale
from sksoftrank.modules._mlp import NORMALIZATIONS
from sksoftrank.training._stack_linear import StackedLinear
from sksoftrank.training._stack_loss import EpochSettings
from sksoftrank.training._stack_norm import StackedNormalization

# Floats in 64 bytes. Each parameter starts at such a border, as it does in a tensor of
# its own: the last digit of a product may depend on where its factors lie.
ALIGNMENT = 16

# Floats that torch's loops take at a time, at most. What is left is computed by another
# formula.
_LOOP = 64

# Activation from input to output, which may be the same tensor, and its gradient from
# the gradient after it and the output, or for those in _FROM_INPUT the input.
ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (
        lambda a, h: torch.relu_(a),
        lambda g, h: _torch.threshold_backward(g, h, 0, grad_input=g),
    ),
    "tanh": (
        lambda a, h: torch.tanh_(a),
        lambda g, h: _torch.tanh_backward(g, h, grad_input=g),
    ),
    "gelu": (
        lambda a, h: _torch.gelu(a, out=h),
        lambda g, a: _torch.gelu_backward(g, a, grad_input=g),
    ),
    "silu": (
        lambda a, h: _torch.silu(a, out=h),
        lambda g, a: _torch.silu_backward(g, a, grad_input=g),
    ),
}
_FROM_INPUT = {"gelu", "silu"}


def linear_layers(module: MLP) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def empty_rows(k: int, like: Tensor) -> Tensor:
    """Return an uninitialised tensor (k, *like.shape), each part aligned."""
    stride = -(-like.numel() // ALIGNMENT) * ALIGNMENT
    return like.new_empty(k, stride)[:, : like.numel()].view(k, *like.shape)


def stack_rows(parts: list[Tensor], out: Tensor | None = None) -> Tensor:
    """Return tensors (n_k, ...) as one (K, max n_k, ...), each part aligned.

    Without `out` a single one is not copied; the padding is never read.
    """
    if out is None:
        if len(parts) == 1:
            return parts[0][None]
        out = empty_rows(len(parts), max(parts, key=len))
    for row, part in zip(out, parts, strict=True):
        row[: len(part)].copy_(part)
    return out


class Stack:
    """The parameters of K networks of one shape, and their gradients, as two matrices.

    A row of `params` or `grads` holds all of one network: first its `n_matrices`
    weights, then its vectors, that of the input's scale before others. A row of `state`
    goes on with what training changes without a gradient: the running moments of batch
    normalisation. While training lasts, the modules' own tensors are views of it.

    Parameters
    ----------
    modules : sequence of MLP
        The networks.
    linear : type
        What computes their products.
    """

    def __init__(self, modules: Sequence[MLP], linear: type[StackedLinear]) -> None:
        self.modules = list(modules)
        self.linear = linear
        module = modules[0]
        self.activation = module.activation
        self.normalization = module.normalization
        self.n_hidden = len(linear_layers(module)) - 1
        self.n_classes = module.output.out_features
        self.shapes = [tensor.shape for tensor in _tensors(module)]
        self.offsets, end = [], 0
        for shape in self.shapes:
            self.offsets.append(end)
            end += -(-shape.numel() // ALIGNMENT) * ALIGNMENT
        ends = [*self.offsets, end]
        self.n_matrices = len(linear_layers(module))
        self._width = ends[len(list(module.parameters()))]
        decay_end = ends[self.n_matrices]
        # Columns, whether decay is for them, and the multiple of the learning rate.
        self.parts = [(slice(decay_end), True, 1.0)]
        self.has_input_scale = isinstance(module.body[0], InputScale)
        if self.has_input_scale:
            scale_end = ends[self.n_matrices + 1]
            self.parts.append((slice(decay_end, scale_end), False, InputScale.lr_scale))
            decay_end = scale_end
        self.parts.append((slice(decay_end, self._width), False, 1.0))
        self.device = module.output.weight.device
        self.state = module.output.weight.new_zeros(len(self.modules), end)
        for row, module in zip(self.state, self.modules, strict=True):
            for view, tensor in zip(self.pieces(row), _tensors(module), strict=True):
                view.copy_(tensor)
        self._bind()

    def pieces(self, row: Tensor) -> list[Tensor]:
        """Return a row as one tensor for each of a network's that it holds."""
        return [
            row[offset : offset + shape.numel()].view(shape)
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
            if offset < len(row)
        ]

    def stacked_pieces(self, rows: Tensor) -> list[Tensor]:
        """Return rows likewise as tensors (K, ...); vectors as (K, 1, width)."""
        return [
            rows[:, offset : offset + shape.numel()].view(
                len(rows), *(shape if len(shape) == 2 else (1, *shape))
            )
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
            if offset < rows.shape[1]
        ]

    def _bind(self) -> None:
        self.params = self.state[:, : self._width]
        self.grads = self.params.new_zeros(self.params.shape)
        for row, module in zip(self.state, self.modules, strict=True):
            for view, tensor in zip(self.pieces(row), _tensors(module), strict=True):
                tensor.data = view
        self.dropouts: list[list[Dropout]] = [
            [layer for layer in module.modules() if isinstance(layer, Dropout)]
            for module in self.modules
        ]

    def generators(self) -> list[torch.Generator]:
        """Return what the masks are drawn from, less torch's own generator."""
        made = [
            dropout.generator_on(self.device)
            for layers in self.dropouts
            for dropout in layers
        ]
        return [generator for generator in made if generator is not None]

    def release(self, module: MLP, row: Tensor) -> None:
        """Give a network this state, in memory of its own."""
        for view, tensor in zip(self.pieces(row), _tensors(module), strict=True):
            tensor.data = view.clone()

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these networks."""
        self.modules = [self.modules[k] for k in rows]
        self.state = self.state[list(rows)]
        self._bind()


def _tensors(module: MLP) -> list[Tensor]:
    """Return all that training changes: matrices, then vectors, then buffers.

    Less batch normalisation's count of batches, of which nothing is made.
    """
    parameters = sorted(module.parameters(), key=lambda p: -p.ndim)
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    return [*parameters, *buffers]


class Propagation:
    """Forward and backward of networks `first` to `last` for batches of one size.

    Buffers and views are made once; each step fills them anew. `x` is (K, size, d), a
    layer's output (K, size, width), a weight (K, width, width before).
    """

    def __init__(
        self, stack: Stack, settings: EpochSettings, first: int, last: int, size: int
    ) -> None:
        # Filled anew in the same memory for each epoch.
        self.temperature = (
            None if settings.temperature is None else settings.temperature[first:last]
        )
        k = last - first
        params = stack.stacked_pieces(stack.params[first:last])
        grads = stack.stacked_pieces(stack.grads[first:last])
        n = stack.n_matrices
        weights, vectors = params[:n], params[n:]
        weight_grads, vector_grads = grads[:n], grads[n:]
        scale = scale_grad = None
        if stack.has_input_scale:
            scale, *vectors = vectors
            scale_grad, *vector_grads = vector_grads
        biases: list[Tensor | None] = list(vectors)
        bias_grads: list[Tensor | None] = list(vector_grads)
        if stack.normalization is not None:
            # Scale and shift of each hidden layer, and the bias of the last.
            none: list[Tensor | None] = [None] * (n - 1)
            biases, bias_grads = [*none, biases[-1]], [*none, bias_grads[-1]]
        widths = [weight.shape[1] for weight in weights]

        def make(width: int) -> Tensor:
            stride = -(-size * width // ALIGNMENT) * ALIGNMENT
            rows = stack.params.new_empty(k, stride)
            return rows[:, : size * width].view(k, size, width)

        self.outputs = [make(width) for width in widths]
        self.gradients = [make(width) for width in widths]
        self.scaled = make(widths[-1])
        # torch's log-softmax fills `out` as if it were contiguous.
        self.log_p = stack.params.new_empty(k, size, widths[-1])
        self.logit_gradient = torch.empty_like(self.log_p)
        if self.gradients[-1].is_contiguous():
            self.gradients[-1] = self.logit_gradient
        # What the activations see, and the gradients by it.
        self.inner, self.inner_grads = self.outputs[:-1], self.gradients[:-1]
        self.normalizations: list[StackedNormalization] = []
        if stack.normalization is not None:
            self.inner = [make(width) for width in widths[:-1]]
            self.inner_grads = [make(width) for width in widths[:-1]]
            norm = NORMALIZATIONS[stack.normalization]
            by_member = [
                [layer for layer in module.body if isinstance(layer, norm)]
                for module in stack.modules[first:last]
            ]
            self.normalizations = [
                StackedNormalization(*parts)
                for parts in zip(
                    zip(*by_member, strict=True),
                    self.outputs[:-1],
                    self.inner,
                    self.gradients[:-1],
                    self.inner_grads,
                    vectors[:-1:2],
                    vectors[1:-1:2],
                    vector_grads[:-1:2],
                    vector_grads[1:-1:2],
                    strict=True,
                )
            ]
        self.dropouts = stack.dropouts[first:last]
        self.activated = self.seen_backward = self.inner
        if stack.activation in _FROM_INPUT:
            self.activated = [make(width) for width in widths[:-1]]
        self.activate: Callable[..., Any] | None = None
        self.activate_backward: Callable[..., Any] | None = None
        if stack.activation in ACTIVATIONS:
            self.activate, self.activate_backward = ACTIVATIONS[stack.activation]
        self.dropped, self.masks = self.activated, []
        if any(self.dropouts):
            self.masks = [make(width).fill_(1.0) for width in widths[:-1]]
            self.dropped = [make(width) for width in widths[:-1]]
        self.linears: list[StackedLinear] = [
            stack.linear(*parts)
            for parts in zip(
                *(weights, biases, weight_grads, bias_grads),
                *(self.outputs, self.gradients),
                [None, *self.dropped],
                [None, *self.inner_grads],
                strict=True,
            )
        ]
        if scale is not None and scale_grad is not None:
            buffers = [empty_rows(k, weights[0][0]) for _ in range(2)]
            self.linears[0].set_input_scale(scale, scale_grad, buffers)
        together = all(size * width % _LOOP == 0 for width in widths[:-1])
        # Else the last numbers of each would be computed by another formula than where
        # the network is alone.
        if not together and self.activate and self.activate_backward:
            self.activate = _one_by_one(self.activate)
            self.activate_backward = _one_by_one(self.activate_backward)

    def run(self, x: Any, target: Tensor, log_p: Tensor) -> None:
        """Leave the gradients in the stack, and the log-probabilities in `log_p`.

        `x` is an array on the CPU; `target` is the gradient of the loss by the
        log-probabilities.
        """
        self.linears[0].x = x
        self._forward()
        logits, g = self.outputs[-1], self.gradients[-1]
        if self.temperature is not None:
            logits = torch.div(logits, self.temperature, out=self.scaled)
        own = log_p if log_p.is_contiguous() else self.log_p
        torch.log_softmax(logits, 2, out=own)
        if own is not log_p:
            log_p.copy_(own)
        raw = self.logit_gradient
        _torch.log_softmax_backward(target, own, 2, torch.float32, out=raw)
        if self.temperature is not None:
            torch.div(raw, self.temperature, out=g)
        elif raw is not g:
            g.copy_(raw)
        for layer in range(len(self.linears) - 1, 0, -1):
            self.linears[layer].backward()
            self._activate_backward(layer - 1)
            if self.normalizations:
                self.normalizations[layer - 1].backward()
        self.linears[0].backward()

    def _forward(self) -> None:
        for layer, linear in enumerate(self.linears[:-1]):
            linear.forward()
            if self.normalizations:
                self.normalizations[layer].forward()
            if self.activate is not None:
                self.activate(self.inner[layer], self.activated[layer])
            if self.masks:
                mask = self.masks[layer]
                for k, layers in enumerate(self.dropouts):
                    if layers:
                        layers[layer].fill_mask(mask[k])
                torch.mul(self.activated[layer], mask, out=self.dropped[layer])
        self.linears[-1].forward()

    def _activate_backward(self, layer: int) -> None:
        g = self.inner_grads[layer]
        if self.masks:
            g.mul_(self.masks[layer])
        if self.activate_backward is not None:
            self.activate_backward(g, self.seen_backward[layer])


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` applied to each network's tensors apart."""

    def apply(a: Tensor, b: Tensor) -> None:
        for a_k, b_k in zip(a, b, strict=True):
            function(a_k, b_k)

    return apply
