"""How well an embedding transfers to new classes."""

from __future__ import annotations

import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sksoftrank._checks import as_labels, as_matrix
from sksoftrank.ood._calibration import encode


def linear_probe_score(
    Z_train: npt.ArrayLike,
    y_train: npt.ArrayLike,
    Z_test: npt.ArrayLike,
    y_test: npt.ArrayLike,
    *,
    C: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Accuracy of a logistic regression on an embedding.

    How well classes can be told apart linearly in a representation that was learnt
    without them: embed rows of new classes, and probe. Columns are standardised first,
    by the training rows.

    Parameters
    ----------
    Z_train : array-like of shape (n_train, d)
        Embedding of the rows to train the probe on.
    y_train : array-like of shape (n_train,)
        Their labels.
    Z_test : array-like of shape (n_test, d)
        Embedding of the rows to score.
    y_test : array-like of shape (n_test,)
        Their labels, all of them classes of `y_train`.
    C : float, default=1.0
        Inverse strength of the regularisation, positive.
    max_iter : int, default=1000
        Most iterations of the solver.

    Returns
    -------
    float
        In [0, 1]; higher means that the representation transfers better.

    Raises
    ------
    ValueError
        If `y_test` holds a class that `y_train` does not, or `y_train` only one.

    References
    ----------
    Alain and Bengio (2016), "Understanding intermediate layers using linear classifier
    probes", arXiv:1610.01644.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.ood import linear_probe_score
    >>> Z = np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.9], [0.8, 0.1]])
    >>> linear_probe_score(Z[:2], ["a", "b"], Z[2:], ["a", "b"])
    1.0
    """
    probe = make_probe(C, max_iter)
    Z_train, Z_test = as_matrix("Z_train", Z_train), as_matrix("Z_test", Z_test)
    probe.fit(Z_train, as_labels("y_train", y_train, len(Z_train)))
    labels = as_labels("y_test", y_test, len(Z_test))
    encode("y_test", labels, probe.classes_)
    return float(probe.score(Z_test, labels))


def make_probe(C: float = 1.0, max_iter: int = 1000) -> Pipeline:
    """Return a logistic regression on standardised columns."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
