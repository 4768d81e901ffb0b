"""Spectra and ranks of a matrix: how many directions a representation uses.

Every function takes a matrix with one row a sample, as a numpy array or a torch
tensor, and computes in float64. None of them centres the rows unless asked to: ranks
of logits are usually read uncentred, variances of representations centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sksoftrank._checks import as_matrix, check_not_negative, naming

__all__ = [
    "effective_rank",
    "numerical_rank",
    "participation_ratio",
    "rank_deficit",
    "rank_report",
    "rankme",
    "singular_values",
    "stable_rank",
    "subspace_alignment",
    "variance_rank",
]

FloatArray = npt.NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


def singular_values(Z: Any, *, center: bool = False) -> FloatArray:
    """Return the singular values of a matrix, largest first.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    center : bool, default=False
        Whether to subtract the mean row first.

    Returns
    -------
    ndarray of shape (min(n, d),)
        Non-negative, in descending order. Those that may be rounding are zero: up to
        ``eps * max(n, d)`` times the largest, and of centred rows ``eps * norm(Z)``
        more, for the rows as they were.

    Raises
    ------
    ValueError
        If `Z` is not a matrix, is empty, or holds NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import singular_values
    >>> singular_values(np.diag([3.0, 4.0]))
    array([4., 3.])
    """
    Z = as_matrix("Z", Z)
    scale = np.abs(Z).max()
    if scale == 0.0:
        return np.zeros(min(Z.shape))
    Z = Z / scale  # Squares then neither overflow nor vanish.
    rounding = 0.0
    if center:
        # Each value was rounded before its offset is taken away: a direction below that
        # is not one of the data.
        rounding = EPS * linalg.norm(Z)
        # From the first row, so that the mean is rounded at the scale of the spread and
        # not of the offset: of equal rows nothing is left, however many they are.
        Z = Z - Z[0]
        Z -= Z.mean(axis=0)
    s = without_rounding(linalg.svdvals(Z), max(Z.shape), rounding)
    if scale > np.finfo(np.float64).max / max(s[0], 1.0):
        raise ValueError(
            "Z must hold numbers whose singular values are finite in double precision, "
            f"got {scale:.3g}. Divide Z by a number: no rank depends on it."
        )
    return s * scale


def without_rounding(s: FloatArray, size: int, rounding: float = 0.0) -> FloatArray:
    """Return a spectrum in which what may be rounding is zero.

    Of a matrix whose longer side is `size`. What its values were before an offset was
    taken away may have left as much as `rounding` in any direction.
    """
    return np.where(s > EPS * size * s[0] + rounding, s, 0.0)


def principal_axes(
    deviations: Any, rounding: float = 0.0, linalg: Any = np.linalg
) -> tuple[FloatArray, FloatArray]:
    """Return all d singular values of rows around zero, and the axes (d, d) as rows.

    By decreasing value, zero where it may be rounding. With ``torch.linalg`` the rows
    are a tensor.
    """
    n, d = deviations.shape
    if n < d:
        # Completed to d axes.
        _, s, axes = linalg.svd(deviations, full_matrices=True)
        s = np.pad(np.asarray(s), (0, d - n))
        return without_rounding(s, d, rounding), np.asarray(axes)
    # For n >> d far cheaper than a decomposition of the rows.
    squares, vectors = linalg.eigh(deviations.T @ deviations)
    squares = without_rounding(np.asarray(squares)[::-1], n, rounding**2)
    return np.sqrt(squares), np.asarray(vectors).T[::-1].copy()


def _relative(s: FloatArray) -> FloatArray:
    """Return the spectrum `s` over its largest value; empty if that is zero."""
    return s / s[0] if s[0] > 0.0 else s[:0]


def count_above(s: FloatArray, tol: float) -> int:
    """Return how many values of a spectrum are above `tol` times the largest."""
    return int(np.count_nonzero(_relative(s) > tol))


def _entropy_rank(p: FloatArray) -> float:
    p = p[p > 0.0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _effective_rank(s: FloatArray) -> float:
    r = _relative(s)
    return _entropy_rank(r / r.sum()) if r.size else 0.0


def _rankme(s: FloatArray, eps: float) -> float:
    r = _relative(s)
    return _entropy_rank(r / r.sum() + eps) if r.size else 0.0


def _stable_rank(s: FloatArray) -> float:
    return float((_relative(s) ** 2).sum())


def _participation_ratio(s: FloatArray) -> float:
    eigenvalues = _relative(s) ** 2
    if not eigenvalues.size:
        return 0.0
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def _variance_rank(s: FloatArray, share: float) -> int:
    r = _relative(s)
    return size_of_share(r**2, share) if r.size else 0


def size_of_share(variances: FloatArray, share: float) -> int:
    """Return the fewest leading variances that hold `share` of the sum, at least one.

    Those that hold just that share do so whatever the last digits of the sums are.
    """
    cumulative = np.cumsum(variances)
    return int(np.searchsorted(cumulative, (share - 1e-12) * cumulative[-1])) + 1


def _check_share(name: str, value: float) -> None:
    if not isinstance(value, Real) or not 0.0 < value <= 1.0:
        raise ValueError(
            f"{name} must be in (0, 1], got {value!r}. Use 0.99 for 99 % of the "
            "variance."
        )


def _check_tol(tol: float) -> None:
    if not isinstance(tol, Real) or not 0.0 <= tol < 1.0:
        raise ValueError(
            f"tol must be in [0, 1), a share of the largest singular value, got "
            f"{tol!r}. Use 1e-3 for directions above a thousandth of the largest."
        )


def numerical_rank(Z: Any, tol: float = 1e-3, *, center: bool = False) -> int:
    """Count the singular values above `tol` times the largest.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    tol : float, default=1e-3
        In [0, 1). Singular values at most ``tol * s[0]`` count as zero.
    center : bool, default=False
        Whether to subtract the mean row first.

    Returns
    -------
    int
        Between 0 (a zero matrix) and ``min(n, d)``.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix or `tol` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import numerical_rank
    >>> numerical_rank(np.diag([1.0, 0.1, 1e-6]))
    2
    """
    _check_tol(tol)
    return count_above(singular_values(Z, center=center), tol)


def effective_rank(Z: Any, *, center: bool = False) -> float:
    """Exponential of the entropy of the normalised singular values.

    ``exp(-sum(p * log(p)))`` with ``p = s / sum(s)``.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    center : bool, default=False
        Whether to subtract the mean row first.

    Returns
    -------
    float
        Between 1 and ``min(n, d)``, or 0 for a zero matrix; lower is more
        compressible.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix.

    References
    ----------
    Roy and Vetterli (2007), "The effective rank: a measure of effective
    dimensionality", EUSIPCO, definition 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import effective_rank
    >>> round(effective_rank(np.eye(5)), 6)
    5.0
    """
    return _effective_rank(singular_values(Z, center=center))


def rankme(Z: Any, *, eps: float = 1e-7, center: bool = False) -> float:
    """Effective rank as RankMe defines it, with a floor under each share.

    ``exp(-sum(p * log(p)))`` with ``p = s / sum(s) + eps``.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    eps : float, default=1e-7
        Added to each share; the default is the paper's for float32.
    center : bool, default=False
        Whether to subtract the mean row first.

    Returns
    -------
    float
        About 1 to ``min(n, d)``, or 0 for a zero matrix.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix.

    References
    ----------
    Garrido et al. (2023), "RankMe", ICML, equations 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import rankme
    >>> round(rankme(np.eye(5)), 3)
    5.0
    """
    eps = check_not_negative("eps", eps)
    return _rankme(singular_values(Z, center=center), eps)


def stable_rank(Z: Any, *, center: bool = False) -> float:
    """Squared Frobenius norm over squared spectral norm.

    ``sum(s ** 2) / s[0] ** 2``.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    center : bool, default=False
        Whether to subtract the mean row first.

    Returns
    -------
    float
        Between 1 and the rank, or 0 for a zero matrix.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix.

    References
    ----------
    Rudelson and Vershynin (2007), "Sampling from large matrices", J. ACM 54(4).

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import stable_rank
    >>> stable_rank(np.diag([2.0, 1.0]))
    1.25
    """
    return _stable_rank(singular_values(Z, center=center))


def participation_ratio(Z: Any, *, center: bool = False) -> float:
    """Squared sum of the eigenvalues of ``Z.T @ Z`` over the sum of their squares.

    ``sum(v) ** 2 / sum(v ** 2)`` with ``v = s ** 2``.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    center : bool, default=False
        Whether to subtract the mean row first.

    Returns
    -------
    float
        Between 1 and the rank, or 0 for a zero matrix.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix.

    References
    ----------
    Gao et al. (2017), "A theory of multineuronal dimensionality, dynamics and
    measurement", bioRxiv 214262.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import participation_ratio
    >>> round(participation_ratio(np.eye(4)), 6)
    4.0
    """
    return _participation_ratio(singular_values(Z, center=center))


def variance_rank(Z: Any, share: float = 0.99, *, center: bool = True) -> int:
    """Fewest leading directions that hold `share` of the variance.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    share : float, default=0.99
        In (0, 1]. Share of the sum of squared singular values.
    center : bool, default=True
        Whether to subtract the mean row first, as a variance does.

    Returns
    -------
    int
        Between 1 and the rank, or 0 for a zero matrix.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix or `share` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import variance_rank
    >>> variance_rank(np.diag([10.0, 5.0, 0.1]), 0.99, center=False)
    2
    """
    _check_share("share", share)
    return _variance_rank(singular_values(Z, center=center), share)


def rank_deficit(logits: Any, n_classes: int | None = None, tol: float = 1e-3) -> int:
    """Count the directions that the logits lack to have one for each class.

    ``max(n_classes - numerical_rank(logits, tol), 0)``.

    Parameters
    ----------
    logits : array-like or Tensor of shape (n, d)
        Scores of the classes, before the softmax, or a representation of at least as
        many columns; not centred.
    n_classes : int, default=None
        Number of classes; None takes the columns of `logits`. Fewer than the columns
        in a representation, whose rank may exceed it: nothing is lacking then.
    tol : float, default=1e-3
        In [0, 1). Tolerance of the numerical rank.

    Returns
    -------
    int
        Between 0 and `n_classes`; higher means that the classes share fewer
        directions.

    Raises
    ------
    ValueError
        If `logits` is not a finite matrix, `tol` or `n_classes` is out of range, or
        there are fewer rows or columns than classes: the shape then bounds the rank,
        and not the network.

    References
    ----------
    Masarczyk et al. (2025), arXiv:2506.01562, "rank-deficit bias".

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import rank_deficit
    >>> rank_deficit(np.diag([1.0, 1.0, 0.0]))
    1
    """
    _check_tol(tol)
    Z = as_matrix("logits", logits)
    n_classes = Z.shape[1] if n_classes is None else n_classes
    if not isinstance(n_classes, Integral) or n_classes < 1:
        raise ValueError(
            f"n_classes must be a positive int, got {n_classes!r}. Use None for the "
            "columns of logits."
        )
    if min(Z.shape) < n_classes:
        raise ValueError(
            f"logits must have at least n_classes={n_classes} rows and columns, got "
            f"shape {Z.shape}: the deficit would be the shape's. Pass more rows, or "
            "lower n_classes."
        )
    return max(int(n_classes) - count_above(singular_values(Z), tol), 0)


def rank_report(
    Z: Any,
    *,
    center: bool = True,
    tols: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    shares: Sequence[float] = (0.9, 0.99, 0.999),
) -> dict[str, Any]:
    """Give all ranks of a matrix at several tolerances, with what they depend on.

    Parameters
    ----------
    Z : array-like or Tensor of shape (n, d)
        One row a sample.
    center : bool, default=True
        Whether to subtract the mean row first.
    tols : sequence of float, default=(0.1, 0.01, 0.001, 0.0001)
        Tolerances of the numerical rank.
    shares : sequence of float, default=(0.9, 0.99, 0.999)
        Shares of the variance.

    Returns
    -------
    dict
        ``n_samples``, ``n_features``, ``center``, ``effective_rank``, ``rankme``,
        ``stable_rank``, ``participation_ratio``, and two dictionaries:
        ``numerical_rank`` by tolerance, ``variance_rank`` by share.

    Raises
    ------
    ValueError
        If `Z` is not a finite matrix or a tolerance or share is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import rank_report
    >>> report = rank_report(np.diag([10.0, 5.0, 0.1]), center=False)
    >>> report["numerical_rank"][0.1], report["variance_rank"][0.99]
    (2, 2)
    """
    with naming(tols, "tols", "tol", expected="a sequence of numbers"):
        for tol in tols:
            _check_tol(tol)
    with naming(shares, "shares", expected="a sequence of numbers"):
        for share in shares:
            _check_share("shares", share)
    Z = as_matrix("Z", Z)
    s = singular_values(Z, center=center)
    return {
        "n_samples": Z.shape[0],
        "n_features": Z.shape[1],
        "center": center,
        "effective_rank": _effective_rank(s),
        "rankme": _rankme(s, eps=1e-7),
        "stable_rank": _stable_rank(s),
        "participation_ratio": _participation_ratio(s),
        "numerical_rank": {tol: count_above(s, tol) for tol in tols},
        "variance_rank": {share: _variance_rank(s, share) for share in shares},
    }


def subspace_alignment(A: Any, B: Any, n_directions: int) -> float:
    """Mean squared cosine between the leading directions of two matrices' rows.

    ``norm(V_A.T @ V_B) ** 2 / k`` in the Frobenius norm, with the k leading right
    singular vectors of each as columns: the squared cosines of the principal angles
    between the two subspaces. Of what a layer gives and the weight of the one that
    takes it, this is how far the layers are aligned.

    Parameters
    ----------
    A : array-like or Tensor of shape (n, d)
        One row a sample.
    B : array-like or Tensor of shape (m, d)
        Of as many columns.
    n_directions : int
        The k, from 1 to d; no more are taken than both matrices have.

    Returns
    -------
    float
        In [0, 1]; one where both subspaces are the same, about ``k / d`` by chance,
        and NaN where a matrix is zero.

    Raises
    ------
    ValueError
        If a matrix is not finite, the columns differ, or `n_directions` is out of
        range.

    References
    ----------
    Bjorck and Golub (1973), "Numerical methods for computing angles between linear
    subspaces", Mathematics of Computation; Ji and Telgarsky (2019), "Gradient descent
    aligns the layers of deep linear networks", ICLR, theorem 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.rank import subspace_alignment
    >>> subspace_alignment(np.diag([2.0, 1.0, 0.0]), np.diag([1.0, 0.0, 3.0]), 2)
    0.5
    """
    A, B = as_matrix("A", A), as_matrix("B", B)
    width = A.shape[1]
    if B.shape[1] != width:
        raise ValueError(
            f"B must have the {width} columns of A, got shape {B.shape}. Pass rows of "
            "the same space."
        )
    if not isinstance(n_directions, Integral) or not 1 <= n_directions <= width:
        raise ValueError(
            f"n_directions must be an int from 1 to {width}, the columns, got "
            f"{n_directions!r}. Use one less than there are classes."
        )
    k = int(n_directions)
    axes = []
    for matrix in (A, B):
        scale = np.abs(matrix).max()
        if scale == 0.0:
            return float("nan")
        s, directions = principal_axes(matrix / scale)
        axes.append(directions)
        k = min(k, np.count_nonzero(s))
    cosines = axes[0][:k] @ axes[1][:k].T
    return float(np.clip((cosines**2).sum() / k, 0.0, 1.0))
