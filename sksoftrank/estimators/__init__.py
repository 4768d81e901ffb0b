"""The scikit-learn estimators."""

from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._ensemble import SoftRankEnsembleClassifier
from sksoftrank.estimators._mlp import SoftRankMLPClassifier

__all__ = [
    "BaseSoftRankClassifier",
    "SoftRankEnsembleClassifier",
    "SoftRankMLPClassifier",
]
