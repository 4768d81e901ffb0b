"""Plots: a frame first, then axes. matplotlib is imported when something is drawn."""

from sksoftrank.displays._network import (
    EmbeddingDisplay,
    SpectrumDisplay,
    TrainingDisplay,
)
from sksoftrank.displays._ranks import RankProfileDisplay, TemperatureSweepDisplay
from sksoftrank.displays._shift import OODReportDisplay, OODSearchDisplay

__all__ = [
    "EmbeddingDisplay",
    "OODReportDisplay",
    "OODSearchDisplay",
    "RankProfileDisplay",
    "SpectrumDisplay",
    "TemperatureSweepDisplay",
    "TrainingDisplay",
]
