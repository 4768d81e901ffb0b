"""The two private names of Optuna's that the package leans on.

`Study.stop` works within `Study.optimize` only, which runs one trial at a time. Our
loop asks for batches, and says that it is one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from optuna import Study

__all__ = ["optimize_loop", "stop_requested"]


@contextmanager
def optimize_loop(study: Study) -> Iterator[None]:
    """Let callbacks, samplers and functions of a trial call `study.stop`."""
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


def stop_requested(study: Study) -> bool:
    """Return whether `study.stop` was called in this loop."""
    return study._stop_flag
