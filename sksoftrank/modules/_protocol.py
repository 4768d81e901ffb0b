"""What every network here offers: ``embed``, ``head``, and their composition."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class EmbedHeadModule(nn.Module, ABC):
    """A classifier network in two parts, so that its representation can be read.

    ``embed(x)`` gives the penultimate representation ``z`` of shape (n, d) and
    ``head(z)``, an affine map, the logits of shape (n, n_classes).
    """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return the penultimate representation (n, d) of `x`."""

    @abstractmethod
    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of `x`."""
        return self.head(self.embed(x))
