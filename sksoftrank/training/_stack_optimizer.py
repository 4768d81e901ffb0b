"""torch's fused optimizer kernels over the networks of a stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sksoftrank.training._stack import Stack
from sksoftrank.training._stack_loss import EpochSettings


class FusedOptimizer:
    """torch's fused step, for each network with its own rate and decay."""

    def __init__(
        self,
        kind: type[torch.optim.Optimizer],
        params: dict[str, Any],
        stack: Stack,
        deterministic: bool,
    ) -> None:
        # torch's class knows the defaults.
        make: Callable[..., torch.optim.Optimizer] = kind
        options = make([torch.zeros(1)], lr=1.0, **params).defaults
        self.stack = stack
        self.deterministic = deterministic
        if kind is torch.optim.SGD:
            n_states = 1 if options["momentum"] else 0
            self._kernel = self._sgd
            self._fused: Callable[..., None] = torch._fused_sgd_
            self._options = {
                name: options[name]
                for name in ("momentum", "dampening", "nesterov", "maximize")
            }
        elif kind in (torch.optim.Adam, torch.optim.AdamW):
            n_states = 2
            self._kernel = self._adam
            self._fused = (
                torch._fused_adam_ if kind is torch.optim.Adam else torch._fused_adamw_
            )
            self._options = {
                "beta1": options["betas"][0],
                "beta2": options["betas"][1],
                **{name: options[name] for name in ("eps", "amsgrad", "maximize")},
            }
        else:
            raise ValueError(
                f"optimizer must be torch's Adam, AdamW or SGD, got {kind!r}. Use "
                "SoftRankNet for others."
            )
        self.states = [torch.zeros_like(stack.params) for _ in range(n_states)]
        # Steps are counted apart: members run out of rows at different steps.
        self.steps = stack.params.new_zeros(len(stack.params))
        self._one = stack.params.new_ones(())  # A number would be copied.
        self._bind()

    def _bind(self) -> None:
        rows = [self.stack.params, self.stack.grads, *self.states]
        split = self.stack.pieces if self.deterministic else lambda row: [row]
        self._lists = [
            [split(matrix[k]) for matrix in rows] for k in range(len(self.stack.params))
        ]
        # Weight decay is for matrices: of a network that has some, the other
        # parameters take a call of their own.
        self._by_shape: dict[int, list[tuple[list[list[Tensor]], bool]]] = {}
        self._counters = self.steps.unbind()

    def _groups(self, k: int, weight_decay: float) -> list[tuple[list[Any], float]]:
        """Return a network's tensors, and the decay of each group of them."""
        if weight_decay == 0.0:
            return [(self._lists[k], 0.0)]
        if k not in self._by_shape:
            rows = [self.stack.params, self.stack.grads, *self.states]
            pieces = [self.stack.pieces(matrix[k]) for matrix in rows]
            self._by_shape[k] = [
                (
                    [[p for p in part if (p.ndim > 1) == decays] for part in pieces],
                    decays,
                )
                for decays in (True, False)
            ]
        return [
            (tensors, weight_decay if decays else 0.0)
            for tensors, decays in self._by_shape[k]
        ]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these networks."""
        self.states = [state[list(rows)] for state in self.states]
        self.steps = self.steps[list(rows)]
        self._bind()

    def step(self, first: int, last: int, settings: EpochSettings) -> None:
        """Move the networks of a range along their gradients."""
        if settings.max_grad_norms is not None:
            for k in range(first, last):
                if settings.max_grad_norms[k] < math.inf:
                    self._clip(k, settings.max_grad_norms[k])
        self.steps[first:last].add_(self._one)
        for k in range(first, last):
            for tensors, decay in self._groups(k, settings.weight_decays[k]):
                counters = [self._counters[k]] * len(tensors[0])
                self._kernel(tensors, counters, settings.learning_rates[k], decay)

    def _clip(self, k: int, max_norm: float) -> None:
        # Arithmetic of torch.nn.utils.clip_grad_norm_.
        grads = self._lists[k][1]
        total = torch.nn.utils.get_total_norm(grads)
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for grad in grads:
            grad.mul_(scale)

    def _adam(
        self,
        tensors: list[list[Tensor]],
        counters: list[Tensor],
        learning_rate: float | Tensor,
        weight_decay: float,
    ) -> None:
        params, grads, means, squares = tensors
        self._fused(
            params,
            grads,
            means,
            squares,
            [],
            counters,
            lr=learning_rate,
            weight_decay=weight_decay,
            **self._options,
        )

    def _sgd(
        self,
        tensors: list[list[Tensor]],
        counters: list[Tensor],
        learning_rate: float | Tensor,
        weight_decay: float,
    ) -> None:
        params, grads, *momenta = tensors
        self._fused(
            params,
            grads,
            momenta[0] if momenta else [],
            lr=learning_rate,
            weight_decay=weight_decay,
            is_first_step=False,  # Momentum starts from zeros, which is the same.
            **self._options,
        )
