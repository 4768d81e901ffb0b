"""How many threads a training on the CPU takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

# A layer of this many weights keeps more than one core busy. Below it threads bring a
# third at most, and beside a busy process cost many times that: they wait for each
# other by spinning.
_WIDE_LAYER = 1 << 22

# numpy's threads are one number for all trainings: the first to come holds them, the
# last lets them go. torch's are each thread's own, but a new thread begins with the
# number that was set last.
_lock = Lock()
_n_trainings = 0
_granted = 1
_limits: list[Any] = []


@cache
def _products() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def threads_for(n_weights: int) -> Iterator[None]:
    """Hold torch to one thread, and numpy's products to as many as pay.

    Parameters
    ----------
    n_weights : int
        Of the widest layer. The number follows from this and from the threads granted
        to torch, never from how busy the machine is. Trainings at the same time share
        that of the first.
    """
    global _n_trainings, _granted
    with _lock:
        if _n_trainings == 0:
            _granted = torch.get_num_threads()
            n_threads = _granted if n_weights >= _WIDE_LAYER else 1
            _limits.append(_products().limit(limits=n_threads))
        _n_trainings += 1
        granted = _granted
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _n_trainings -= 1
            if _n_trainings == 0:
                _limits.pop().restore_original_limits()
        torch.set_num_threads(granted)


def _compute_alone() -> None:
    """Take one thread in a forked child, which has none of its parent's.

    OpenMP's threads are the parent's, and a child that asks for them waits forever. Its
    trainings go on without the child.
    """
    global _lock, _n_trainings
    torch.set_num_threads(1)
    _lock, _n_trainings = Lock(), 0
    _limits.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)
