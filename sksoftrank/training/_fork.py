"""One thread in a forked child, which has none of its parent's."""

import os

import torch


def _compute_alone() -> None:
    # OpenMP's threads are the parent's, and a child that asks for them waits forever.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)
