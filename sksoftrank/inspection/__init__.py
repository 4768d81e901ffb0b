"""What a temperature does to a classifier, and a network made as small as that allows.

By temperature, by layer, by epoch.
"""

from sksoftrank.inspection._compress import compress_network
from sksoftrank.inspection._monitor import RankMonitor
from sksoftrank.inspection._profile import effective_depth, rank_profile
from sksoftrank.inspection._sweep import (
    TEMPERATURES,
    paired_difference,
    summarize_sweep,
    temperature_sweep,
)

__all__ = [
    "TEMPERATURES",
    "RankMonitor",
    "compress_network",
    "effective_depth",
    "paired_difference",
    "rank_profile",
    "summarize_sweep",
    "temperature_sweep",
]
