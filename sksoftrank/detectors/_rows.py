"""What a classifier makes of rows: features, logits, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import linalg
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array

from sksoftrank._sklearn import BaseSearchCV, is_linear
from sksoftrank.estimators import BaseSoftRankClassifier, SoftRankEnsembleClassifier
from sksoftrank.rank import EPS

FloatArray = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]
Head = tuple[FloatArray, FloatArray]  # (d, c) and (c,): logits = z @ W + b


def _per_row(compute: Callable[[Rows], FloatArray]) -> cached_property[FloatArray]:
    """Make a property that is computed of all rows once, and cut for a part of them."""

    def value(rows: Rows) -> FloatArray:
        if rows.whole is None:
            return compute(rows)
        values: FloatArray = getattr(rows.whole, compute.__name__)[rows.index]
        return values

    return cached_property(value)


@dataclass(eq=False)
class Rows:
    """Features and logits of rows, each computed once, when a method first asks.

    `last` is the classifier that sees `X`. A part has no `X`: only the `whole`, and its
    `index` there.
    """

    last: Any
    X: Any
    method: str
    known_head: Head | None = None
    whole: Rows | None = None
    index: Codes | None = None
    _eps: float = EPS

    @classmethod
    def seen_by(
        cls, classifier: Any, X: Any, method: str, head: Head | None = None
    ) -> Rows:
        """Return the rows as the classifier within pipelines and searches sees them."""
        return cls(*_unwrap(classifier, X), method, head)

    def take(self, index: Codes) -> Rows:
        """Return some of the rows."""
        return replace(self, X=None, whole=self, index=index)

    @property
    def eps(self) -> float:
        """Machine epsilon of the least precise numbers that the classifier gave."""
        return self._eps if self.whole is None else self.whole.eps

    @_per_row
    def features(self) -> FloatArray:
        """Penultimate representation (n, d)."""
        if hasattr(self.last, "embed"):
            Z = self.last.embed(self.X)
        elif hasattr(self.last, "transform"):
            Z = self.last.transform(self.X)
        elif is_linear(self.last):
            Z = self.X  # What its one layer sees.
        else:
            raise ValueError(
                f"method={self.method!r} needs features, but "
                f"{type(self.last).__name__} has no embed and no transform, and is not "
                "linear. Use a method that needs none, such as 'energy' or 'msp', or a "
                "classifier that has one."
            )
        return self._read(Z, "the classifier's features")

    def _read(self, values: Any, name: str, **params: Any) -> FloatArray:
        dtype = np.asarray(values).dtype
        if dtype.kind == "f":
            self._eps = max(self._eps, float(np.finfo(dtype).eps))
        checked: FloatArray = check_array(
            values, dtype=np.float64, input_name=name, **params
        )
        return checked

    @property
    def rounding(self) -> float:
        """Deviation below which a direction of the features is rounding."""
        length = float(np.sqrt(np.mean(np.sum(self.features**2, axis=1))))
        return self.eps * length

    @_per_row
    def scores(self) -> FloatArray:
        """Output of the decision function, as one column a class (n, c)."""
        n_classes = len(self.last.classes_)
        scores = self._read(
            self.last.decision_function(self.X),
            "the classifier's decision_function",
            ensure_2d=False,
        )
        if scores.ndim == 1:
            # The softmax of the halves is the logistic function of the difference, and
            # no class is favoured: with (0, d) one class would have no energy.
            scores = np.column_stack([-scores / 2, scores / 2])
        if scores.shape[1] != n_classes:
            raise ValueError(
                "the classifier's decision_function must have one column for each of "
                f"its {n_classes} classes, got {scores.shape[1]}. Set "
                "decision_function_shape='ovr' where it has one."
            )
        return scores

    @_per_row
    def logits(self) -> FloatArray:
        """Logits before any division by a temperature (n, c)."""
        if _is_ours(self.last):
            # From the features: one pass of the network gives both, and of two classes
            # both logits, where decision_function has but their difference.
            W, b = self.head
            return self.features @ W + b
        if not hasattr(self.last, "decision_function"):
            raise ValueError(
                f"method={self.method!r} needs logits, but {type(self.last).__name__} "
                "has no decision_function. Use 'msp' or 'entropy', which need "
                "probabilities only, or a classifier that has one."
            )
        return self.scores * float(getattr(self.last, "temperature_", 1.0))

    @_per_row
    def log_proba(self) -> FloatArray:
        """Logarithms of the probabilities that the classifier reports (n, c)."""
        if isinstance(self.last, BaseSoftRankClassifier):
            return _log_softmax(self.logits / self.last.temperature_)
        if hasattr(self.last, "decision_function"):
            return _log_softmax(self.scores)
        proba = self._read(
            self.last.predict_proba(self.X), "the classifier's predict_proba"
        )
        return np.log(np.maximum(proba, np.finfo(np.float64).tiny))

    @property
    def head(self) -> Head:
        """The affine map from features to logits."""
        if self.whole is not None:
            return self.whole.head
        if self.known_head is None:
            self.known_head = self._find_head()
        return self.known_head

    def _find_head(self) -> Head:
        last, width = self.last, self.features.shape[1]
        if isinstance(last, BaseSoftRankClassifier):
            return _affine(last._head(), width)
        if isinstance(last, SoftRankEnsembleClassifier):
            # The members' mean logit, of their features side by side.
            heads = [
                _affine(member._head(), member.module_.embedding_width)
                for member in last.estimators_
            ]
            weights, offsets = zip(*heads, strict=True)
            return np.vstack(weights) / len(heads), np.mean(offsets, axis=0)
        if not hasattr(last, "embed") and not hasattr(last, "transform"):
            W, b = last.coef_.T, last.intercept_
            if W.shape[1] == 1:
                W, b = np.hstack([-W / 2, W / 2]), np.concatenate([-b / 2, b / 2])
            return W.astype(np.float64), b.astype(np.float64)
        Z = np.hstack([self.features, np.ones((len(self.features), 1))])
        # A direction that only rounding gives the rows says nothing of the logits.
        solution = linalg.lstsq(Z, self.logits, cond=self.eps * max(Z.shape))[0]
        return solution[:-1], solution[-1]


def _unwrap(classifier: Any, X: Any) -> tuple[Any, Any]:
    """Return the classifier within pipelines and searches, and the rows it sees."""
    while True:
        if isinstance(classifier, FrozenEstimator):
            classifier = classifier.estimator
        elif isinstance(classifier, BaseSearchCV):
            classifier = classifier.best_estimator_
        elif isinstance(classifier, Pipeline):
            for _, step in classifier.steps[:-1]:
                # Samplers, as imbalanced-learn calls them, are for training alone.
                if step not in (None, "passthrough") and not hasattr(
                    step, "fit_resample"
                ):
                    X = step.transform(X)
            classifier = classifier.steps[-1][1]
        else:
            return classifier, X


def _is_ours(classifier: Any) -> bool:
    return isinstance(classifier, BaseSoftRankClassifier | SoftRankEnsembleClassifier)


def _log_softmax(scores: FloatArray) -> FloatArray:
    """Return log-probabilities, exact also of those that round to one.

    scipy's take the largest term into the sum, in which the others then vanish.
    """
    rows, top = np.arange(len(scores)), scores.argmax(axis=1)
    shifted = scores - scores[rows, top][:, None]
    others = np.exp(shifted)
    others[rows, top] = 0.0
    return shifted - np.log1p(others.sum(axis=1))[:, None]


def _affine(head: Any, width: int) -> Head:
    """Return the weights (d, c) and offset (c,) of a torch module that is affine."""
    points = torch.from_numpy(np.eye(width + 1, width, -1))
    with torch.inference_mode():
        out = head(points).numpy()
    return out[1:] - out[0], out[0]
