"""The private names of torch that the package leans on, all of them.

A stack's step is a chain of kernels that write into memory of its own, which public
functions do not: they return new tensors, or take several times as long on the way to
the same kernel, as an optimizer's step does. What a module is wrapped in, and the hooks
on it, only its private attributes tell, and that it normalises batches, of any shape,
lazily or not, its private base.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "_BatchNorm",
    "batch_norm",
    "batch_norm_backward",
    "fused_adam",
    "fused_adamw",
    "fused_sgd",
    "gelu",
    "gelu_backward",
    "has_hooks",
    "has_step_hooks",
    "layer_norm",
    "layer_norm_backward",
    "log_softmax_backward",
    "silu",
    "silu_backward",
    "tanh_backward",
    "threshold_backward",
    "uncompiled",
]

_aten = torch.ops.aten

batch_norm = _aten.native_batch_norm.out
batch_norm_backward = _aten.native_batch_norm_backward.out
layer_norm = _aten.native_layer_norm.out
layer_norm_backward = _aten.native_layer_norm_backward.out
gelu = _aten.gelu.out
gelu_backward = _aten.gelu_backward.grad_input
silu = _aten.silu.out
silu_backward = _aten.silu_backward.grad_input
tanh_backward = _aten.tanh_backward.grad_input
threshold_backward = _aten.threshold_backward.grad_input

# The same kernels by torch's bindings, which are quicker and take a tensor as a rate.
log_softmax_backward = torch._log_softmax_backward_data
fused_adam = torch._fused_adam_
fused_adamw = torch._fused_adamw_
fused_sgd = torch._fused_sgd_


def has_hooks(module: nn.Module) -> bool:
    """Return whether a hook waits for the module's forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(p._backward_hooks for p in module.parameters(recurse=False))
    )


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a hook waits for the optimizer's steps."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return any(map(bool, hooks))


def uncompiled(module: Any) -> Any:
    """Return the module within torch.compile's wrapper; another as it is."""
    return getattr(module, "_orig_mod", module)
