"""Training: batches from memory, and the skorch net."""

from sksoftrank.training._batches import InMemoryBatches, InMemoryDataset, make_batches
from sksoftrank.training._net import AccuracyStopping, SoftRankNet

__all__ = [
    "AccuracyStopping",
    "InMemoryBatches",
    "InMemoryDataset",
    "SoftRankNet",
    "make_batches",
]
