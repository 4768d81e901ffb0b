"""scikit-learn classifiers whose softmax temperature sets the rank of what they learn.

The public names are imported when they are first used, so that ``import sksoftrank``
costs nothing and pulls in neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sksoftrank import (
        collapse,
        compression,
        corruptions,
        datasets,
        detectors,
        displays,
        domains,
        estimators,
        export,
        inspection,
        losses,
        modules,
        ood,
        persistence,
        rank,
        reporting,
        search,
        shifts,
        theory,
        training,
    )
    from sksoftrank.compression import RankCompressor
    from sksoftrank.detectors import OODDetector
    from sksoftrank.estimators import (
        SoftRankClassifier,
        SoftRankCNNClassifier,
        SoftRankEnsembleClassifier,
        SoftRankMLPClassifier,
        SoftRankTransformerClassifier,
    )
    from sksoftrank.export import to_onnx
    from sksoftrank.persistence import load, save
    from sksoftrank.reporting import report
    from sksoftrank.search import (
        OODSearchCV,
        StackedGridSearchCV,
        StackedRandomizedSearchCV,
    )
    from sksoftrank.training import SoftRankNet

__version__ = "0.2.0"

_HOMES = {
    "OODDetector": "detectors",
    "OODSearchCV": "search",
    "RankCompressor": "compression",
    "SoftRankCNNClassifier": "estimators",
    "SoftRankClassifier": "estimators",
    "SoftRankEnsembleClassifier": "estimators",
    "SoftRankMLPClassifier": "estimators",
    "SoftRankNet": "training",
    "SoftRankTransformerClassifier": "estimators",
    "StackedGridSearchCV": "search",
    "StackedRandomizedSearchCV": "search",
    "load": "persistence",
    "report": "reporting",
    "save": "persistence",
    "to_onnx": "export",
}
_SUBMODULES = (
    "collapse",
    "compression",
    "corruptions",
    "datasets",
    "detectors",
    "displays",
    "domains",
    "estimators",
    "export",
    "inspection",
    "losses",
    "modules",
    "ood",
    "persistence",
    "rank",
    "reporting",
    "search",
    "shifts",
    "theory",
    "training",
)

__all__ = [
    "OODDetector",
    "OODSearchCV",
    "RankCompressor",
    "SoftRankCNNClassifier",
    "SoftRankClassifier",
    "SoftRankEnsembleClassifier",
    "SoftRankMLPClassifier",
    "SoftRankNet",
    "SoftRankTransformerClassifier",
    "StackedGridSearchCV",
    "StackedRandomizedSearchCV",
    "__version__",
    "collapse",
    "compression",
    "corruptions",
    "datasets",
    "detectors",
    "displays",
    "domains",
    "estimators",
    "export",
    "inspection",
    "load",
    "losses",
    "modules",
    "ood",
    "persistence",
    "rank",
    "report",
    "reporting",
    "save",
    "search",
    "shifts",
    "theory",
    "to_onnx",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"sksoftrank.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"sksoftrank.{name}")
    raise AttributeError(f"module 'sksoftrank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
