"""One thread in a forked child, which has none of its parent's."""

import os

import torch

from sksoftrank.training._threads import forget_trainings


def _compute_alone() -> None:
    # OpenMP's threads are the parent's, and a child that asks for them waits forever.
    torch.set_num_threads(1)
    forget_trainings()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)
