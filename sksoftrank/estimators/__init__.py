"""The scikit-learn estimators."""

from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._cnn import SoftRankCNNClassifier
from sksoftrank.estimators._ensemble import SoftRankEnsembleClassifier
from sksoftrank.estimators._mlp import SoftRankMLPClassifier
from sksoftrank.estimators._module import SoftRankClassifier
from sksoftrank.estimators._transformer import SoftRankTransformerClassifier

__all__ = [
    "BaseSoftRankClassifier",
    "SoftRankCNNClassifier",
    "SoftRankClassifier",
    "SoftRankEnsembleClassifier",
    "SoftRankMLPClassifier",
    "SoftRankTransformerClassifier",
]
