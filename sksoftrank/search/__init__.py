"""Searches over hyperparameters.

`OODSearchCV` is imported when it is first used, as it imports Optuna.
"""

from typing import TYPE_CHECKING, Any

from sksoftrank.search.stacked import StackedGridSearchCV, StackedRandomizedSearchCV

if TYPE_CHECKING:
    from sksoftrank.search.ood import OODSearchCV

__all__ = ["OODSearchCV", "StackedGridSearchCV", "StackedRandomizedSearchCV"]


def __getattr__(name: str) -> Any:
    if name == "OODSearchCV":
        from sksoftrank.search.ood import OODSearchCV

        return OODSearchCV
    raise AttributeError(f"module 'sksoftrank.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
