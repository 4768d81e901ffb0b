"""What every network here offers: ``embed``, ``head``, and their composition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn


class EmbedHeadModule(nn.Module, ABC):
    """A classifier network in two parts, so that its representation can be read.

    ``embed(x)`` gives the penultimate representation ``z`` of shape (n, d) and
    ``head(z)``, an affine map, the logits of shape (n, n_classes).

    Attributes
    ----------
    embedding_width : int
        The width d of the representation.
    """

    embedding_width: int

    @property
    def network(self) -> nn.Module:
        """The module whose submodules a layer's name refers to."""
        return self

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return the penultimate representation (n, d) of `x`."""

    @abstractmethod
    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of `x`."""
        return self.head(self.embed(x))


def parameters_without_decay(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that weight decay leaves alone.

    These are vectors, such as biases and the scales of normalisations, and what a
    module's method ``no_weight_decay()`` names, as in timm: positions, tokenizers.
    """
    found = [p for p in module.parameters() if p.ndim < 2]
    for part in module.modules():
        named = getattr(part, "no_weight_decay", None)
        if callable(named):
            own = dict(part.named_parameters())
            found += [own[name] for name in named() if name in own]
    return found


def lr_scales(module: nn.Module) -> dict[nn.Parameter, float]:
    """Return the multiples of the learning rate that parameters ask for.

    Those of parts with an attribute ``lr_scale``.
    """
    found: dict[nn.Parameter, float] = {}
    for part in module.modules():
        scale = getattr(part, "lr_scale", None)
        if isinstance(scale, float):
            found |= dict.fromkeys(part.parameters(recurse=False), scale)
    return found


def find_layer(module: EmbedHeadModule, name: str) -> nn.Module:
    """Return the submodule of that name, or say which there are."""
    layers = dict(module.network.named_modules())
    if isinstance(name, str) and name and name in layers:
        return layers[name]
    close = get_close_matches(str(name), layers, n=5) or list(layers)[1:6]
    raise ValueError(
        f"layer must be the name of a submodule, got {name!r}. Did you mean one of "
        f"{close}? network.named_modules() lists them all."
    )


def layer_output(module: EmbedHeadModule, name: str, x: Tensor) -> Tensor:
    """Return what the submodule of that name gives for rows `x`."""
    return layer_outputs(module, [name], x)[0]


def layer_outputs(
    module: EmbedHeadModule, names: Sequence[str], x: Tensor
) -> list[Tensor]:
    """Return what the submodules of those names give for rows `x`, in one pass."""
    found = record_layers(module, names, x)
    for name in names:
        if name not in found:
            raise ValueError(
                f"layer must be a submodule that the network calls, got {name!r}, which"
                " it does not. Name another, such as one within it."
            )
        output = found[name]
        if not has_rows(output, x):
            is_tensor = isinstance(output, Tensor)
            got = f"shape {tuple(output.shape)}" if is_tensor else type(output).__name__
            raise ValueError(
                f"layer must give a tensor with a row for each of X, got {name!r}, "
                f"which gives {got} for {len(x)} rows. Name another submodule."
            )
    return [found[name] for name in names]


def has_rows(output: Any, x: Tensor) -> bool:
    """Whether a layer's output has a row for each of `x`."""
    return isinstance(output, Tensor) and output.ndim > 0 and len(output) == len(x)


def record_layers(
    module: EmbedHeadModule, names: Sequence[str], x: Tensor
) -> dict[str, Any]:
    """Return, by name, what those submodules give that `module` calls for `x`."""
    found: dict[str, Any] = {}
    thread = get_ident()

    def keep(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if get_ident() != thread:  # Another thread may run the same module.
            return
        if isinstance(output, Mapping):
            output = next(iter(output.values()), None)
        elif isinstance(output, tuple | list):
            output = output[0] if output else None
        # A copy: what follows may work in place, as ResNets' activations do.
        found[name] = output.clone() if isinstance(output, Tensor) else output

    layers = [find_layer(module, name) for name in names]
    with ExitStack() as hooks:
        for name, layer in zip(names, layers, strict=True):
            handle = layer.register_forward_hook(partial(keep, name))
            hooks.callback(handle.remove)
        module(x)
    return found
