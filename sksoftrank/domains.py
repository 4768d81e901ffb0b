"""Splits that test on domains which training does not see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import combinations
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_random_state, indexable
from sklearn.utils.multiclass import type_of_target

from sksoftrank._checks import as_labels
from sksoftrank._sampling import stratified_order

__all__ = ["DomainSplit"]

Array = npt.NDArray[Any]


class DomainSplit(BaseCrossValidator):
    """Test on each domain in turn, train on others, set some of their rows aside.

    A domain is where or when a row comes from: a month, a site, a sensor; it is passed
    as `groups`. The rows set aside measure the in-distribution accuracy that belongs
    beside the accuracy on a new domain. `split` leaves them out of both its sets, so
    that it trains on what `split_with_validation` trains on. With ``valid_fraction=0``
    `split` is scikit-learn's ``LeaveOneGroupOut``, or ``LeavePGroupsOut(n_out)``.

    Parameters
    ----------
    n_out : int, default=1
        Domains held out together: from 1 to one fewer than there are. Every
        combination is a fold.
    valid_fraction : float, default=0.2
        Share of the other domains' rows that is set aside for validation, in [0, 1).
        Each pair of a class and a domain has its share where it has rows enough;
        without classes, each domain.
    random_state : int, RandomState instance or None, default=None
        Seeds the choice of the rows set aside. With an int they are the same ones
        each time.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.domains import DomainSplit
    >>> X, y = np.zeros((8, 1)), np.tile([0, 1], 4)
    >>> month = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    >>> cv = DomainSplit(valid_fraction=0.5, random_state=0)
    >>> for train, valid, test in cv.split_with_validation(X, y, month):
    ...     print(month[train], month[valid], month[test], sorted(y[valid].tolist()))
    [2 2] [2 2] [1 1 1 1] [0, 1]
    [1 1] [1 1] [2 2 2 2] [0, 1]

    In scikit-learn's tools the domain held out gives the score:

    >>> from sklearn.dummy import DummyClassifier
    >>> from sklearn.model_selection import cross_val_score
    >>> cross_val_score(DummyClassifier(), X, y, groups=month, cv=cv)
    array([0.5, 0.5])
    """

    __metadata_request__split: ClassVar = {"groups": True}

    def __init__(
        self,
        n_out: int = 1,
        *,
        valid_fraction: float = 0.2,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_out = n_out
        self.valid_fraction = valid_fraction
        self.random_state = random_state

    def split(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> Iterator[tuple[Array, Array]]:
        """Yield the places of the training and the test rows of each fold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; only their number matters.
        y : array-like of shape (n_samples,), default=None
            Classes, to set aside a share of each. Numbers that are no classes count
            as None.
        groups : array-like of shape (n_samples,), default=None
            Domain of each row; must be given.

        Yields
        ------
        train : ndarray of int
            Rows of the other domains without those set aside, ascending.
        test : ndarray of int
            Rows of the domains held out, ascending.

        Raises
        ------
        ValueError
            If `groups` is None or holds one domain only, or a parameter is out of
            range.
        """
        for train, _, test in self.split_with_validation(X, y, groups):
            yield train, test

    def split_with_validation(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> Iterator[tuple[Array, Array, Array]]:
        """Yield the places of the training, validation and test rows of each fold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; only their number matters.
        y : array-like of shape (n_samples,), default=None
            Classes, to set aside a share of each. Numbers that are no classes count
            as None.
        groups : array-like of shape (n_samples,), default=None
            Domain of each row; must be given.

        Yields
        ------
        train : ndarray of int
            Rows of the other domains without those set aside, ascending.
        valid : ndarray of int
            Rows of the other domains set aside, ascending: as many as
            `valid_fraction` of those domains' rows, rounded.
        test : ndarray of int
            Rows of the domains held out, ascending.

        Raises
        ------
        ValueError
            If `groups` is None or holds one domain only, a parameter is out of range,
            or no row would be left to train on or to set aside.
        """
        X, y, groups = indexable(X, y, groups)
        _, domains = self._domains(groups)
        fraction = self._fraction()
        classes = _classes(y)
        strata = domains
        if classes is not None:
            strata = domains * (classes.max() + 1) + classes
        rng = check_random_state(
            np.random.RandomState() if self.random_state is None else self.random_state
        )
        for held_out in combinations(range(domains.max() + 1), self.n_out):
            is_test = np.isin(domains, held_out)
            rows = np.flatnonzero(~is_test)
            n_valid = math.floor(fraction * len(rows) + 0.5)
            if fraction > 0 and not 0 < n_valid < len(rows):
                raise ValueError(
                    f"valid_fraction must leave rows both to validate and to train "
                    f"on, got {self.valid_fraction!r}, {n_valid} of {len(rows)} rows. "
                    "Pass another share, or 0 for none."
                )
            is_valid = np.zeros(len(rows), dtype=bool)
            if n_valid:
                is_valid[stratified_order(strata[rows], rng)[:n_valid]] = True
            yield rows[~is_valid], rows[is_valid], np.flatnonzero(is_test)

    def get_n_splits(
        self,
        X: Any = None,
        y: Any = None,
        groups: npt.ArrayLike | None = None,
    ) -> int:
        """Return the number of folds: combinations of `n_out` domains.

        Parameters
        ----------
        X : object, default=None
            Ignored.
        y : object, default=None
            Ignored.
        groups : array-like of shape (n_samples,), default=None
            Domain of each row; must be given.

        Returns
        -------
        int
            At least 2.

        Raises
        ------
        ValueError
            If `groups` is None or holds one domain only, or `n_out` is out of range.
        """
        names, _ = self._domains(groups)
        return math.comb(len(names), self.n_out)

    def _domains(self, groups: Any) -> tuple[Array, Array]:
        """Return the domains' names and each row's number among them."""
        if groups is None:
            raise ValueError(
                "groups must give the domain of each row, got None. Pass groups=."
            )
        names, domains = np.unique(as_labels("groups", groups), return_inverse=True)
        if len(names) < 2:
            raise ValueError(
                f"groups must hold at least two domains, got only {names.tolist()}. "
                "Use a splitter without groups, such as StratifiedKFold."
            )
        n_out: Any = self.n_out
        is_integer = isinstance(n_out, Integral) and not isinstance(n_out, bool)
        if not is_integer or not 1 <= n_out < len(names):
            raise ValueError(
                f"n_out must be an integer from 1 to {len(names) - 1}, so that one of "
                f"the {len(names)} domains is left to train on, got {n_out!r}. Hold "
                "out fewer."
            )
        return names, domains

    def _fraction(self) -> float:
        fraction: Any = self.valid_fraction
        is_number = isinstance(fraction, Real) and not isinstance(fraction, bool)
        if not is_number or not 0 <= fraction < 1:
            raise ValueError(
                f"valid_fraction must be a number in [0, 1), got {fraction!r}. It is "
                "a share; 0 sets no rows aside."
            )
        return float(fraction)


def _classes(y: Any) -> Array | None:
    """Return each row's class as a number, or None where `y` holds no classes."""
    if y is None:
        return None
    with warnings.catch_warnings():
        # Of many classes with few rows: they are of no harm here.
        warnings.simplefilter("ignore", UserWarning)
        kind = type_of_target(y)
    if kind not in ("binary", "multiclass"):
        return None
    codes: Array = np.unique(np.asarray(y), return_inverse=True)[1].reshape(-1)
    return codes
