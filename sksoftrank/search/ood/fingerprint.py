"""What a study is of: a text for each part of it, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import joblib
import optuna
from sklearn.base import BaseEstimator

from sksoftrank._digest import digest, shorten, stable_repr
from sksoftrank.search.ood.protocol import Plan
from sksoftrank.search.ood.space import Space
from sksoftrank.search.ood.storage import shown

# The study's attributes that begin so.
_FINGERPRINT = "sksoftrank:fingerprint:"


def fingerprint(
    *,
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    plan: Plan,
    space: Space,
    settings: Mapping[str, Any],
    fit_params: Mapping[str, Any],
) -> dict[str, str]:
    """Return what a study is of, part by part, the same in every process."""
    params = {
        f"estimator's {name}": type(value).__name__
        if hasattr(value, "get_params")
        else stable_repr(value)
        for name, value in sorted(estimator.get_params(deep=True).items())
        if name != "steps"
    }
    rows = [
        (split.train, split.id.rows, *(o.rows for o in split.ood.values()))
        for split in plan.splits
    ]
    scored = {id(o.X): o for split in plan.splits for o in split.ood.values()}
    foreign = [(o.X, o.y) for o in scored.values() if o.X is not X]
    return {
        "estimator": type(estimator).__name__,
        **params,
        "X": digest(X),
        "y": digest(y),
        "domains": f"{plan.domains}",
        "rows of the splits": digest(rows),
        "X_ood or shifted rows": digest(foreign) if foreign else "none",
        "fit parameters": digest(sorted(fit_params.items())),
        **{f"space of {name}": text for name, text in space.description.items()},
        **{name: stable_repr(value) for name, value in settings.items()},
    }


def check_fingerprint(
    study: optuna.Study, parts: Mapping[str, str], storage: Any
) -> None:
    """Note what a study is of, or raise if it was of something else.

    Raises
    ------
    ValueError
        If a part differs, with its name and both values.
    """
    own = _FINGERPRINT + joblib.hash(dict(parts))[:16]
    _compare(study, parts, own, storage)
    if own not in study.user_attrs:
        study.set_user_attr(own, dict(parts))
        # Another one may have been written at the same time.
        _compare(study, parts, own, storage)


def _compare(
    study: optuna.Study, parts: Mapping[str, str], own: str, storage: Any
) -> None:
    for name, other in study.user_attrs.items():
        if not name.startswith(_FINGERPRINT) or name == own:
            continue
        changed = [
            f"{part}: {shorten(other.get(part))} before, {shorten(parts.get(part))} now"
            for part in sorted({*parts, *other})
            if parts.get(part) != other.get(part)
        ]
        raise ValueError(
            f"study_name={study.study_name!r} in storage={shown(storage)} must be of "
            f"the same search, but this one differs in {'; '.join(changed)}. Undo the "
            "change, or pass another study_name."
        )
