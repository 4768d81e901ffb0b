"""Which rows are trained on and which are scored, for each source of shift."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import _safe_indexing, check_consistent_length, indexable
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite

from sksoftrank._checks import as_labels, read_labels
from sksoftrank._sklearn import _check_method_params, _num_samples
from sksoftrank.ood._rows import undefined_on, why_undefined
from sksoftrank.shifts import put_columns, shift_name

Array = npt.NDArray[Any]

_N_FOLDS = 5
_FIX = (
    "Use a number of folds, or a splitter that makes its folds of the rows it is given,"
    " such as StratifiedKFold, or GroupKFold with fit(..., groups=...)."
)


@dataclass
class Scored:
    """Rows to score: `rows` of `X` and `y`, None for all.

    `origin` are the rows of the training data that they stand for, if any: what is
    given for each of those goes along, such as sample weights.
    """

    X: Any
    y: Any
    rows: Array | None
    origin: Array | None

    @property
    def labels(self) -> Any:
        """Labels of the rows."""
        return self.y if self.rows is None else _safe_indexing(self.y, self.rows)

    def cut(self) -> tuple[Any, Any]:
        """Return X and y."""
        X = self.X if self.rows is None else _safe_indexing(self.X, self.rows)
        return X, self.labels

    def params(self, X: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Return what a scorer takes beside the rows."""
        if self.origin is None:
            return {}
        params: dict[str, Any] = _check_method_params(X, given, indices=self.origin)
        return params


@dataclass
class Split:
    """Rows to train on, rows to score on, and which replicate of the scores it is."""

    train: Array
    id: Scored
    ood: dict[int, Scored]
    replicate: int


@dataclass
class Plan:
    """All splits, and the names of the domains that they score."""

    splits: list[Split]
    domains: list[str]

    @property
    def n_replicates(self) -> int:
        """Number of scores for each domain and seed."""
        return 1 + max(split.replicate for split in self.splits)


def make_plan(
    X: Any,
    y: Any,
    *,
    domains: Any = None,
    X_ood: Any = None,
    y_ood: Any = None,
    domains_ood: Any = None,
    shifts: Any = None,
    cv: Any = None,
    split_params: dict[str, Any] | None = None,
    seed: int = 0,
) -> Plan:
    """Return the splits for the one source of shift that is given."""
    split_params = split_params or {}
    _check_source(domains, X_ood, y_ood, domains_ood, shifts)
    if not (cv is None or isinstance(cv, Integral)):
        # Once: an iterator gives its folds to the first domain only.
        cv = check_cv(cv, y, classifier=True)
    if domains is not None:
        return _leave_one_domain_out(X, y, domains, cv, split_params, seed)
    folds = _folds(X, y, cv, split_params, seed)
    if X_ood is not None:
        # Rows of any sparse format can then be taken.
        X_ood, y_ood, domains_ood = indexable(X_ood, y_ood, domains_ood)
        if _num_samples(X_ood) == 0:
            raise ValueError("X_ood must hold at least one row, got none. Pass rows.")
        _check_columns(X, X_ood)
        assert_all_finite(y_ood, input_name="y_ood")
        check_classification_targets(y_ood)
        names, codes = ["ood"], np.zeros(_num_samples(X_ood), dtype=int)
        if domains_ood is not None:
            names, codes = _encode_domains(domains_ood, "domains_ood")
        ood = {
            d: Scored(X_ood, y_ood, np.flatnonzero(codes == d), None)
            for d in range(len(names))
        }
        source = _row_hashes(X)
        for d, scored in ood.items():
            _check_classes(scored.labels, y, "y_ood", names[d])
            _check_is_other(source, scored.cut()[0], names[d])
        splits = [
            Split(train, Scored(X, y, test, test), ood, k)
            for k, (train, test) in enumerate(folds)
        ]
        return Plan(splits, names)
    names = _shift_names(shifts)
    splits = [
        Split(
            train,
            Scored(X, y, test, test),
            _shifted(X, y, train, test, shifts, seed + k),
            k,
        )
        for k, (train, test) in enumerate(folds)
    ]
    return Plan(splits, names)


def keep_defined(plan: Plan, y: Any, scorer: Any, scoring: Any) -> Plan:
    """Return the plan less the domains that no candidate has a score on, by classes.

    Raises
    ------
    ValueError
        If no domain is left, or held-out source rows can't be scored.
    """
    undefined: dict[int, str] = {}
    for split in plan.splits:
        classes = np.unique(_safe_indexing(y, split.train))
        reason = why_undefined(scorer, classes, split.id.labels)
        if reason is not None:
            raise ValueError(
                f"scoring={scoring!r} must be defined on the held-out source rows, but "
                f"in a split {reason}. Use fewer splits of all classes, such as "
                "StratifiedKFold(2), leave out classes of a few rows, or use a metric "
                "such as 'accuracy'."
            )
        for d, rows in split.ood.items():
            if d not in undefined:
                reason = why_undefined(scorer, classes, rows.labels)
                if reason is not None:
                    undefined[d] = reason
    if not undefined:
        return plan
    text = undefined_on(
        repr(scoring), {plan.domains[d]: undefined[d] for d in sorted(undefined)}
    )
    kept = [d for d in range(len(plan.domains)) if d not in undefined]
    if not kept:
        raise ValueError(
            f"{text} That leaves no domain to score. Use a metric such as 'accuracy', "
            "or domains whose rows are of all classes."
        )
    warnings.warn(
        f"{text} It is left out of the scores, and still trained on where it is a "
        "source. Use a metric such as 'accuracy' to score it.",
        UndefinedMetricWarning,
        stacklevel=5,
    )

    def keep(scored: dict[int, Any]) -> dict[int, Any]:
        return {kept.index(d): rows for d, rows in scored.items() if d in kept}

    splits = [
        replace(split, ood=keep(split.ood)) for split in plan.splits if keep(split.ood)
    ]
    return Plan(splits, [plan.domains[d] for d in kept])


def _check_source(
    domains: Any, X_ood: Any, y_ood: Any, domains_ood: Any, shifts: Any
) -> None:
    given = [
        name
        for name, value in (
            ("domains", domains),
            ("X_ood", X_ood),
            ("shifts", shifts),
        )
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            "Exactly one source of shift must be given, got "
            f"{' and '.join(given) or 'none'}. Use fit(X, y, domains=...) with a label "
            "for each row, or fit(X, y, X_ood=..., y_ood=...) with rows of another "
            "domain, or OODSearchCV(..., shifts=[...]) with transformers from "
            "sksoftrank.shifts."
        )
    if X_ood is not None and y_ood is None:
        raise ValueError(
            "y_ood must hold the labels of X_ood, got None. Pass one label a row."
        )
    if y_ood is not None:
        read_labels("y_ood", y_ood)
    for name, value in (("y_ood", y_ood), ("domains_ood", domains_ood)):
        if value is not None and X_ood is None:
            raise ValueError(
                f"{name} must come with X_ood, got X_ood=None. Pass its rows."
            )
    if shifts is not None:
        if isinstance(shifts, str) or not isinstance(shifts, Sequence) or not shifts:
            raise ValueError(
                "shifts must be a list of at least one transformer, got "
                f"{shifts!r}. Use e.g. [GainDrift(severity=3)]."
            )
        for shift in shifts:
            if not (hasattr(shift, "fit") and hasattr(shift, "transform")):
                raise TypeError(
                    "shifts must hold transformers with fit and transform, got "
                    f"{shift!r}. Use those of sksoftrank.shifts."
                )


def _check_columns(X: Any, X_ood: Any) -> None:
    shapes = [getattr(rows, "shape", None) or np.shape(rows) for rows in (X, X_ood)]
    if shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            f"X_ood must have the shape of X but for the number of rows, got "
            f"{shapes[1]} and {shapes[0]}. Give both the same columns."
        )


def _check_classes(labels: Any, source: Any, name: str, domain: str) -> None:
    """Refuse a domain on which every configuration would score nothing."""
    if not np.isin(np.asarray(labels), np.asarray(source)).any():
        raise ValueError(
            f"{name} must hold rows of classes that are trained on, got none in "
            f"{domain!r}. Leave the domain out, or train on rows of its classes."
        )


def _check_is_other(source: set[int], X_ood: Any, domain: str) -> None:
    """Refuse a domain that is a part of the source, whose rows' hashes these are."""
    own = _row_hashes(X_ood)
    if own and own <= source:
        raise ValueError(
            f"X_ood must hold rows of other domains than X, got only rows of X in "
            f"{domain!r}. Leave them out of X, or use fit(X, y, domains=...)."
        )


def _row_hashes(X: Any) -> set[int]:
    """Return a number for each row of an array; none of a frame or sparse matrix."""
    if not isinstance(X, np.ndarray) or X.dtype.kind not in "biuf":
        return set()
    rows = np.ascontiguousarray(X, dtype=np.float64).reshape(len(X), -1)
    return {hash(row.tobytes()) for row in rows}


def _encode_domains(labels: Any, name: str) -> tuple[list[str], Array]:
    values, codes = np.unique(as_labels(name, labels), return_inverse=True)
    return [str(value) for value in values.tolist()], codes


def _folds(
    X: Any, y: Any, cv: Any, split_params: dict[str, Any], seed: int, of: str = "X"
) -> list[tuple[Array, Array]]:
    """Return rows to train on and rows held out; `of` says what they are rows of."""
    n = _num_samples(X)
    is_default = cv is None
    if cv is None or isinstance(cv, Integral):
        # Shuffled: rows are often sorted by a domain, and a fold would be one.
        n_folds = _N_FOLDS if cv is None else int(cv)
        cv = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    folds = []
    for train, test in cv.split(X, y, **split_params):
        try:
            # Indices or a mask, as rows counted from 0.
            train, test = (np.arange(n)[_index(rows)] for rows in (train, test))
        except IndexError as error:
            raise ValueError(
                f"cv must yield indices of the {n} rows of {of}, but {error}. {_FIX}"
            ) from error
        if not len(train) or not len(test) or np.isin(test, train).any():
            raise ValueError(
                "cv must yield rows to train on and other rows to hold out, at least "
                f"one of each, got {len(train)} and {len(test)} rows of {of}, "
                f"{np.isin(test, train).sum()} of them the same. {_FIX}"
            )
        folds.append((train, test))
    if not folds:
        raise ValueError("cv must yield at least one split, got none. Pass a number.")
    # More configurations tell more than more folds of each.
    return folds[:1] if is_default else folds


def _index(rows: Any) -> Array:
    rows = np.asarray(rows)
    return rows if rows.size else rows.astype(int)


def _leave_one_domain_out(
    X: Any, y: Any, domains: Any, cv: Any, split_params: dict[str, Any], seed: int
) -> Plan:
    check_consistent_length(X, domains)
    names, codes = _encode_domains(domains, "domains")
    if len(names) < 2:
        raise ValueError(
            "domains must name at least two domains, one to train on and one to score, "
            f"got {names}. Pass rows of another domain as X_ood."
        )
    splits = []
    for d in range(len(names)):
        source, left_out = np.flatnonzero(codes != d), np.flatnonzero(codes == d)
        _check_classes(
            _safe_indexing(y, left_out), _safe_indexing(y, source), "y", names[d]
        )
        given = _check_method_params(X, split_params, indices=source)
        folds = _folds(
            _safe_indexing(X, source),
            _safe_indexing(y, source),
            cv,
            given,
            seed + d,
            f"the source (all but domain {names[d]!r}, so that indices of all rows of "
            "X mean others there)",
        )
        for replicate, (train, test) in enumerate(folds):
            held_out = source[test]
            splits.append(
                Split(
                    source[train],
                    Scored(X, y, held_out, held_out),
                    {d: Scored(X, y, left_out, left_out)},
                    replicate,
                )
            )
    return Plan(splits, names)


def _shift_names(shifts: Sequence[Any]) -> list[str]:
    names: list[str] = []
    for shift in shifts:
        name = shift_name(shift)
        if hasattr(shift, "severity"):
            name = f"{name}({shift.severity})"
        n_same = sum(other.partition(" #")[0] == name for other in names)
        names.append(f"{name} #{n_same + 1}" if n_same else name)
    return names


def _shifted(
    X: Any, y: Any, train: Array, test: Array, shifts: Sequence[Any], seed: int
) -> dict[int, Scored]:
    """Return the held-out rows under each shift, which sees the training rows."""
    source, rows = _safe_indexing(X, train), _safe_indexing(X, test)
    labels = _safe_indexing(y, test)
    shifted = {}
    for d, shift in enumerate(shifts):
        transformer = clone(shift)
        if hasattr(transformer, "set_output"):
            # Rows as they came, whatever output is set for all transformers.
            transformer.set_output(transform="default")
        if transformer.get_params().get("random_state", 0) is None:
            # The same for every candidate, and in every process.
            transformer.set_params(random_state=(seed + 7919 * d) % 2**32)
        # Columns keep their names, which the estimator may look at.
        out = put_columns(rows, transformer.fit(source).transform(rows))
        shifted[d] = Scored(out, labels, None, test)
    return shifted
