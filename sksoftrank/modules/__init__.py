"""Networks that split into an embedding and a head."""

from sksoftrank.modules._mlp import MLP
from sksoftrank.modules._protocol import EmbedHeadModule

__all__ = ["MLP", "EmbedHeadModule"]
