"""torch's fused optimizer kernels over the networks of a stack."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sksoftrank import _torch
from sksoftrank.training._stack import Stack
from sksoftrank.training._stack_loss import EpochSettings

# What of torch's optimizers there is here.
_ADAM = ("betas", "eps", "maximize")
OPTIONS: dict[Any, tuple[str, ...]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.SGD: ("momentum", "nesterov", "maximize"),
}


# Of how torch computes, not what.
_IMPLEMENTATIONS = ("fused", "foreach")


def check_optimizer(
    kind: type[torch.optim.Optimizer], params: dict[str, Any]
) -> dict[str, Any]:
    """Return an optimizer's options, or say which a stack has not got."""
    if kind not in OPTIONS:
        raise ValueError(
            f"optimizer must be torch's Adam, AdamW or SGD, got {kind!r}. Use "
            "SoftRankNet for others."
        )
    known = _parameters(kind)  # type: ignore[arg-type]
    for name, value in params.items():
        if name not in known:
            raise ValueError(
                f"optimizer_params must be parameters of {kind.__name__}, got {name!r}."
                f" It has {[*OPTIONS[kind]]}."
            )
        if (
            name not in (*OPTIONS[kind], *_IMPLEMENTATIONS)
            and value != known[name].default
        ):
            raise ValueError(
                f"optimizer_params must leave {name!r} at {known[name].default!r}, got "
                f"{value!r}: only {[*OPTIONS[kind]]} can be set in a stack. Use "
                "SoftRankNet for others."
            )
    options = {name: params.get(name, known[name].default) for name in OPTIONS[kind]}
    if options.get("nesterov") and not options["momentum"]:
        raise ValueError(
            "optimizer_params must have a positive momentum with nesterov=True, got "
            f"{options['momentum']!r}. Set e.g. momentum=0.9."
        )
    return options


@cache
def _parameters(kind: Any) -> Any:
    # By its signature: to make one imports torch's compiler.
    return inspect.signature(kind).parameters


class FusedOptimizer:
    """torch's fused step, for each network with its own rate and decay."""

    def __init__(
        self,
        kind: type[torch.optim.Optimizer],
        options: dict[str, Any],
        stack: Stack,
    ) -> None:
        self.stack = stack
        if kind is torch.optim.SGD:
            n_states = 1 if options["momentum"] else 0
            self._kernel = self._sgd
            self._fused: Callable[..., None] = _torch.fused_sgd
            self._options = {**options, "dampening": 0.0}
        else:
            n_states = 2
            self._kernel = self._adam
            self._fused = (
                _torch.fused_adam if kind is torch.optim.Adam else _torch.fused_adamw
            )
            beta1, beta2 = options["betas"]
            self._options = {
                **{name: options[name] for name in ("eps", "maximize")},
                "beta1": beta1,
                "beta2": beta2,
                "amsgrad": False,
            }
        self.states = [torch.zeros_like(stack.params) for _ in range(n_states)]
        # Steps are counted apart: members run out of rows at different steps.
        self.steps = stack.params.new_zeros(len(stack.params))
        self._one = stack.params.new_ones(())  # A number would be copied.
        self._bind()

    def _bind(self) -> None:
        rows = [self.stack.params, self.stack.grads, *self.states]
        self._rows = [[[matrix[k]] for matrix in rows] for k in range(len(rows[0]))]
        # Each has a call of its own where decay or rate are not those of all.
        self._parts = [
            [
                ([[matrix[k, columns]] for matrix in rows], decays, scale)
                for columns, decays, scale in self.stack.parts
            ]
            for k in range(len(rows[0]))
        ]
        self._counters = [[step] for step in self.steps.unbind()]

    def rows(self, k: int) -> list[Tensor]:
        """Return all that is a network's own: its count of steps, and its means."""
        return [self.steps[k], *(state[k] for state in self.states)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these networks."""
        self.states = [state[list(rows)] for state in self.states]
        self.steps = self.steps[list(rows)]
        self._bind()

    def step(self, members: slice, settings: EpochSettings) -> None:
        """Move the networks of a range along their gradients."""
        networks = range(members.start, members.stop)
        if settings.max_grad_norms is not None:
            for k in networks:
                if settings.max_grad_norms[k] < math.inf:
                    self._clip(k, settings.max_grad_norms[k])
        self.steps[members].add_(self._one)
        for k in networks:
            rates, decay = settings.learning_rates[k], settings.weight_decays[k]
            if decay == 0.0 and not self.stack.has_input_scale:
                self._kernel(self._rows[k], self._counters[k], rates[1.0], 0.0)
                continue
            for tensors, decays, scale in self._parts[k]:
                own = decay if decays else 0.0
                self._kernel(tensors, self._counters[k], rates[scale], own)

    def _clip(self, k: int, max_norm: float) -> None:
        # Arithmetic of torch.nn.utils.clip_grad_norm_.
        grads = self._rows[k][1]
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
