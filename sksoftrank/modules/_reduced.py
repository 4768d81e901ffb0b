"""A trained network in evaluation mode, with thinner layers in place of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sksoftrank.modules._layers import Conv1d, Conv2d, Linear
from sksoftrank.modules._protocol import EmbedHeadModule


class ReducedModule(EmbedHeadModule):
    """A network some of whose layers are thinner, or products of two thin ones.

    Parameters
    ----------
    original : type
        Class of the network, an :class:`EmbedHeadModule`.
    original_params : mapping of str to object
        Its arguments.
    replaced : mapping of str to sequence of int
        What stands in place of its submodules, by their names: () nothing; (in, out) a
        linear map or convolution with a bias; (in, rank, out) two linear maps;
        (in, rank, rank, out) a convolution between two of one place, the first or the
        last of which is left out where it would change no width.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.modules import MLP, ReducedModule
    >>> sizes = {"n_features": 4, "n_classes": 3, "hidden_layer_sizes": (16, 16)}
    >>> module = ReducedModule(MLP, sizes, {"body.2": (16, 2, 16)})
    >>> module.base.body[2]
    Sequential(
      (0): Linear(in_features=16, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=16, bias=True)
    )
    """

    def __init__(
        self,
        original: type[EmbedHeadModule],
        original_params: Mapping[str, Any],
        replaced: Mapping[str, Sequence[int]],
    ) -> None:
        super().__init__()
        self.original = original
        self.original_params = dict(original_params)
        self.replaced = dict(replaced)
        self.base = original(**original_params)
        for name, widths in replaced.items():
            layer = self.base.get_submodule(name)
            self.base.set_submodule(name, _thin(layer, widths))
        self.embedding_width = self.base.embedding_width

    @property
    def network(self) -> nn.Module:
        """The network that the names of its layers refer to."""
        return self.base

    def embed(self, x: Tensor) -> Tensor:
        """Return the penultimate representation (n, d) of `x`."""
        return self.base.embed(x)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        return self.base.head(z)


def _thin(layer: Any, widths: Sequence[int]) -> nn.Module:
    """Return what stands in place of a layer."""
    if not widths:
        return nn.Identity()
    dtype = layer.weight.dtype
    first, *rank, last = widths
    if isinstance(layer, nn.Linear):
        if not rank:
            return Linear(first, last, dtype=dtype)
        return nn.Sequential(
            Linear(first, rank[0], bias=False, dtype=dtype),
            Linear(rank[0], last, dtype=dtype),
        )
    conv: Any = Conv2d if isinstance(layer, nn.Conv2d) else Conv1d
    before, after = rank or (first, last)
    wide = {"kernel_size": layer.kernel_size, "padding": layer.padding}
    place = {"kernel_size": 1, "padding": 0}
    shapes = [(first, before, place), (before, after, wide), (after, last, place)]
    used = [s for s in shapes if s[2] is wide or s[0] != s[1]]
    parts = [
        conv(width_in, width_out, bias=shape is used[-1], dtype=dtype, **params)
        for shape in used
        for width_in, width_out, params in [shape]
    ]
    thin = nn.Sequential(*parts) if len(parts) > 1 else parts[0]
    if layer.weight.is_contiguous(memory_format=torch.channels_last):
        thin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return thin
