"""Searches over hyperparameters."""

from sksoftrank.search._stacked import StackedGridSearchCV, StackedRandomizedSearchCV

__all__ = ["StackedGridSearchCV", "StackedRandomizedSearchCV"]
