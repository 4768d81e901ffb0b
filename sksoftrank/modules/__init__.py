"""Networks that split into an embedding and a head."""

from sksoftrank.modules._adapter import AdaptedModule
from sksoftrank.modules._cnn import CNN
from sksoftrank.modules._layers import Augmentation
from sksoftrank.modules._mlp import MLP
from sksoftrank.modules._protocol import EmbedHeadModule
from sksoftrank.modules._reduced import ReducedModule
from sksoftrank.modules._transformer import Transformer

__all__ = [
    "CNN",
    "MLP",
    "AdaptedModule",
    "Augmentation",
    "EmbedHeadModule",
    "ReducedModule",
    "Transformer",
]
