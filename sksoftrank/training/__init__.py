"""Training: batches from memory, and the skorch net."""

from sksoftrank.training._batches import InMemoryBatches, InMemoryDataset, make_batches
from sksoftrank.training._net import SoftRankNet
from sksoftrank.training._stacked import Member, train_stack
from sksoftrank.training._stopping import AccuracyStopping

__all__ = [
    "AccuracyStopping",
    "InMemoryBatches",
    "InMemoryDataset",
    "Member",
    "SoftRankNet",
    "make_batches",
    "train_stack",
]
