"""Training: batches from memory, and the skorch net."""

from sksoftrank.training._batches import InMemoryBatches, InMemoryDataset
from sksoftrank.training._iterators import make_batches
from sksoftrank.training._member import StopFlag
from sksoftrank.training._net import SoftRankNet, fit_nets
from sksoftrank.training._stopping import AccuracyStopping
from sksoftrank.training._stream import StreamBatches, StreamDataset

__all__ = [
    "AccuracyStopping",
    "InMemoryBatches",
    "InMemoryDataset",
    "SoftRankNet",
    "StopFlag",
    "StreamBatches",
    "StreamDataset",
    "fit_nets",
    "make_batches",
]
