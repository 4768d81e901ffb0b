"""The one private name of joblib that the package leans on.

To ask for loky's processes starts them, where none are; only a global variable tells
whether some wait for work already. Without it a search may train in one process where
several would take less time, with the same results.
"""

from joblib.externals.loky import reusable_executor

__all__ = ["are_processes_started"]


def are_processes_started() -> bool:
    """Return whether loky's processes wait for work."""
    return reusable_executor._executor is not None
