"""Detection of rows that are out of distribution, around any fitted classifier."""

from sksoftrank.detectors._detector import OODDetector

__all__ = ["OODDetector"]
