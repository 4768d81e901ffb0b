"""Training: batches from memory, and the skorch net."""

import sksoftrank.training._fork  # noqa: F401
from sksoftrank.training._batches import InMemoryBatches, InMemoryDataset
from sksoftrank.training._iterators import make_batches
from sksoftrank.training._member import Member, StopFlag
from sksoftrank.training._net import SoftRankNet, fit_nets
from sksoftrank.training._stacked import train_stack
from sksoftrank.training._stopping import AccuracyStopping
from sksoftrank.training._stream import StreamBatches, StreamDataset

__all__ = [
    "AccuracyStopping",
    "InMemoryBatches",
    "InMemoryDataset",
    "Member",
    "SoftRankNet",
    "StopFlag",
    "StreamBatches",
    "StreamDataset",
    "fit_nets",
    "make_batches",
    "train_stack",
]
