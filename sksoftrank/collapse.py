"""How far the rows of a class have gathered, and how evenly classes lie: collapse.

Towards the end of training a classifier's embedding may collapse: the rows of a class
onto their centre (NC1), the centres onto a simplex, of equal norms and angles (NC2),
the head's weights onto the centres (NC3), and its choice onto the nearest centre (NC4).
Every function takes a matrix with one row a sample, as a numpy array or a torch tensor,
and its labels. Each class counts the same, however many rows it has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sksoftrank._checks import as_labels, as_matrix
from sksoftrank.rank import EPS

__all__ = [
    "class_separation",
    "equiangularity",
    "equinorm",
    "nearest_center_agreement",
    "neural_collapse",
    "self_duality",
    "within_class_variability",
]

FloatArray = npt.NDArray[np.float64]
# Directions of the centres below this share of the longest are taken for the rounding
# of a network in single precision: rows vary as little, and the ratio says nothing.
_ROUNDING = 1e-6


class _Classes:
    """Rows by their classes, around the mean of the classes' centres.

    `centers` (C, d) are those around the mean, `norms` (C,) theirs, and `deviations`
    (n, d) the rows around the centre of their own class.
    """

    def __init__(self, Z: Any, y: Any) -> None:
        Z = as_matrix("Z", Z)
        labels = as_labels("y", y, len(Z))
        self.classes, self.codes = np.unique(labels, return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError(
                f"y must hold at least two classes, got {self.classes.tolist()}. Pass "
                "rows of others too."
            )
        # No measure depends on the scale, and squares then neither overflow nor vanish.
        Z = Z / (np.abs(Z).max() or 1.0)
        # From the first row: of equal rows no offset leaves a rounding.
        Z -= Z[0].copy()
        centers = self.mean_by_class(Z)
        self.deviations = Z - centers[self.codes]
        self.centers = centers - centers.mean(axis=0)
        norms = np.linalg.norm(self.centers, axis=1)
        # Of one that lies in the mean of all only a rounding is left.
        self.norms = np.where(norms > 4 * EPS * np.sqrt(Z.shape[1]), norms, 0.0)

    def mean_by_class(self, values: FloatArray) -> FloatArray:
        """Return the mean (C, d) of the rows (n, d) of each class."""
        order = np.argsort(self.codes, kind="stable")
        counts = np.bincount(self.codes)
        starts = np.cumsum(counts) - counts
        sums = np.add.reduceat(values[order], starts, axis=0)
        return np.asarray(sums / counts[:, None])

    def within_class_variability(self) -> float:
        if not self.norms.any():
            return float("inf")
        _, s, axes = np.linalg.svd(self.centers, full_matrices=False)
        kept = s > _ROUNDING * s[0]
        along = self.deviations @ axes[kept].T
        variances = self.mean_by_class(along**2).mean(axis=0)
        return float((variances / s[kept] ** 2).sum())

    def equinorm(self) -> float:
        mean = self.norms.mean()
        return float(self.norms.std() / mean) if mean > 0.0 else float("nan")

    def equiangularity(self) -> float:
        if not self.norms.any():
            return float("nan")
        n = len(self.classes)
        lengths = np.where(self.norms > 0.0, self.norms, np.inf)[:, None]
        cosines = (self.centers / lengths) @ (self.centers / lengths).T
        above = cosines[np.triu_indices(n, 1)]
        return float(np.abs(above + 1 / (n - 1)).mean())

    def self_duality(self, weight: Any) -> float:
        weight = as_matrix("weight", weight)
        if weight.shape != self.centers.shape:
            raise ValueError(
                f"weight must be of shape {self.centers.shape}, a row for each class of"
                f" y and a column for each of Z, got {weight.shape}. Pass the head's "
                "weight, and rows of all its classes."
            )
        weight = weight - weight.mean(axis=0)
        length = np.linalg.norm(weight)
        if not self.norms.any() or length == 0.0:
            return float("nan")
        centers = self.centers / np.linalg.norm(self.centers)
        return float(np.linalg.norm(weight / length - centers))

    def nearest_center_agreement(self, predictions: Any) -> float:
        predicted = as_labels("predictions", predictions, len(self.codes))
        rows = self.deviations + self.centers[self.codes]
        # The rows' own norms are the same for each centre.
        distances = (self.centers**2).sum(axis=1) - 2 * rows @ self.centers.T
        agrees = self.classes[distances.argmin(axis=1)] == predicted
        return float(self.mean_by_class(agrees[:, None].astype(float)).mean())


def within_class_variability(Z: Any, y: npt.ArrayLike) -> float:
    """Variance within the classes over that between them (NC1).

    ``trace(S_W @ pinv(S_B)) / C``, with ``S_W`` the mean of the classes' covariances
    and ``S_B`` the covariance of their C centres. Directions in which the centres
    vary by less than a millionth of the most count as none.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of at least two classes.

    Returns
    -------
    float
        Zero where each class is one point, infinite where all centres are; lower is
        more collapsed.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, or `y` not labels of two classes for its rows.

    References
    ----------
    Papyan, Han and Donoho (2020), "Prevalence of neural collapse during the terminal
    phase of deep learning training", PNAS, figure 6.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import within_class_variability
    >>> Z = np.array([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]])
    >>> round(within_class_variability(Z, [0, 0, 1, 1]), 6)
    0.125
    """
    return _Classes(Z, y).within_class_variability()


def equinorm(Z: Any, y: npt.ArrayLike) -> float:
    """Spread of the norms of the classes' centres (NC2).

    ``std(norm(m_c)) / mean(norm(m_c))``, with the centres ``m_c`` around their mean.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of at least two classes.

    Returns
    -------
    float
        Zero where all norms are equal, as in a simplex; NaN where all centres are one
        point.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, or `y` not labels of two classes for its rows.

    References
    ----------
    Papyan, Han and Donoho (2020), PNAS, figure 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import equinorm
    >>> equinorm(np.array([[1.0, 0.0], [-1.0, 0.0]]), ["a", "b"])
    0.0
    """
    return _Classes(Z, y).equinorm()


def equiangularity(Z: Any, y: npt.ArrayLike) -> float:
    """How far the angles between the classes' centres are from a simplex's (NC2).

    The mean over all pairs of ``abs(cos(m_c, m_k) + 1 / (C - 1))``, with the centres
    ``m_c`` around their mean. One that lies in the mean itself has cosine zero.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of at least two classes.

    Returns
    -------
    float
        Zero for a simplex, whose angles are equal and as wide as can be; NaN where all
        centres are one point.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, or `y` not labels of two classes for its rows.

    References
    ----------
    Papyan, Han and Donoho (2020), PNAS, figure 4.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import equiangularity
    >>> round(equiangularity(np.eye(4), range(4)), 6)
    0.0
    """
    return _Classes(Z, y).equiangularity()


def self_duality(Z: Any, y: npt.ArrayLike, weight: Any) -> float:
    """Distance between the head's weights and the classes' centres (NC3).

    ``norm(W / norm(W) - M / norm(M))`` in Frobenius norms. The centres ``M`` are around
    their mean, and so are, other than in the paper, the rows of ``W``: what all of them
    have in common changes no probability, and no training takes it out.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of all classes.
    weight : array-like or Tensor of shape (n_classes, d)
        Of the head, a row for each class in sorted order.

    Returns
    -------
    float
        Between zero, where weights are centres but for a factor, and two; NaN where
        all weights, or all centres, are one.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, `y` not labels of two classes for its rows, or
        `weight` not one of a row for each of them.

    References
    ----------
    Papyan, Han and Donoho (2020), PNAS, figure 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import self_duality
    >>> round(self_duality(np.eye(3), range(3), 5 * np.eye(3)), 6)
    0.0
    """
    return _Classes(Z, y).self_duality(weight)


def nearest_center_agreement(
    Z: Any, y: npt.ArrayLike, predictions: npt.ArrayLike
) -> float:
    """Share of rows whose predicted class has the nearest centre (NC4).

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of at least two classes.
    predictions : array-like of shape (n,)
        What the classifier says of the rows.

    Returns
    -------
    float
        In [0, 1], the mean over the classes; one where the network does what the
        nearest centre would. The paper draws the share of the others.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, `y` not labels of two classes for its rows, or
        `predictions` not labels for them.

    References
    ----------
    Papyan, Han and Donoho (2020), PNAS, figure 7.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import nearest_center_agreement
    >>> nearest_center_agreement(np.eye(2), [0, 1], [0, 0])
    0.5
    """
    return _Classes(Z, y).nearest_center_agreement(predictions)


def class_separation(Z: Any, y: npt.ArrayLike) -> float:
    """Share of the rows' cosine distance that is between classes.

    ``1 - d_within / d_total``, with the mean distances ``1 - cos`` between two rows of
    a class and between any two rows. Rows are not centred; one of zeros is at distance
    one from all.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of at least two classes.

    Returns
    -------
    float
        In [0, 1]; higher means that classes are further apart and, across networks,
        that the representation transfers less. Zero where all rows point one way.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, or `y` not labels of two classes for its rows.

    References
    ----------
    Kornblith et al. (2021), "Why do better loss functions lead to less transferable
    features?", NeurIPS, where it is called R squared.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import class_separation
    >>> class_separation(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), [0, 0, 1])
    1.0
    """
    groups = _Classes(Z, y)
    Z = as_matrix("Z", Z)
    scale = np.abs(Z).max(axis=1, keepdims=True)
    Z = np.divide(Z, scale, out=np.zeros_like(Z), where=scale > 0.0)
    length = np.linalg.norm(Z, axis=1, keepdims=True)
    units = np.divide(Z, length, out=Z, where=length > 0.0)
    # The mean cosine of all pairs is the squared norm of their mean.
    centers = groups.mean_by_class(units)
    within = 1.0 - (centers**2).sum(axis=1).mean()
    total = 1.0 - (centers.mean(axis=0) ** 2).sum()
    # Less than the rounding of the two is no distance.
    if total < 1e-12:
        return 0.0
    return float(np.clip(1.0 - within / total, 0.0, 1.0))


def neural_collapse(
    Z: Any,
    y: npt.ArrayLike,
    weight: Any = None,
    predictions: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Give all measures of collapse.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    y : array-like of shape (n,)
        Labels of at least two classes.
    weight : array-like or Tensor of shape (n_classes, d), default=None
        Of the head, for "self_duality".
    predictions : array-like of shape (n,), default=None
        What the classifier says of the rows, for "nearest_center_agreement".

    Returns
    -------
    dict of str to float
        By the names of the functions: ``within_class_variability`` (NC1), ``equinorm``
        and ``equiangularity`` (NC2), ``self_duality`` (NC3) where `weight` is given,
        ``nearest_center_agreement`` (NC4) where `predictions` are, and
        ``class_separation``.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix, or another argument is not for its rows.

    References
    ----------
    Papyan, Han and Donoho (2020), "Prevalence of neural collapse during the terminal
    phase of deep learning training", PNAS.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.collapse import neural_collapse
    >>> report = neural_collapse(np.eye(3), range(3), predictions=range(3))
    >>> report["within_class_variability"], report["nearest_center_agreement"]
    (0.0, 1.0)
    """
    groups = _Classes(Z, y)
    report = {
        "within_class_variability": groups.within_class_variability(),
        "equinorm": groups.equinorm(),
        "equiangularity": groups.equiangularity(),
        "class_separation": class_separation(Z, y),
    }
    if weight is not None:
        report["self_duality"] = groups.self_duality(weight)
    if predictions is not None:
        report["nearest_center_agreement"] = groups.nearest_center_agreement(
            predictions
        )
    return report
