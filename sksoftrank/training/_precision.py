"""The precision of a training's arithmetic, which torch keeps in global switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Condition, get_ident
from typing import Any

import torch

PRECISIONS = ("float32", "bf16", "tf32")

# Trainings under way in several threads, as pairs of the thread and whether it has
# short products. The first to come finds what the last restores.
_trainings: list[tuple[int, bool]] = []
_ended = Condition()
_before: list[tuple[Any, str, Any]] = []


@contextmanager
def matmul_precision(
    precision: str, device: str | torch.device | None
) -> Iterator[None]:
    """Let CUDA shorten the factors of products to 10 bits for "tf32", else forbid it.

    torch's own default shortens those of convolutions. Other devices have no such
    choice. The switches are one for all threads: a training waits for those of other
    threads that have them set otherwise.
    """
    if device_type(device) != "cuda":
        yield
        return
    own = (get_ident(), precision == "tf32")

    def is_free() -> bool:
        return all(own[0] == ident or own[1] == short for ident, short in _trainings)

    is_counted = False
    try:
        with _ended:
            _ended.wait_for(is_free)
            if not _trainings:
                _before[:] = _read_switches()
            _trainings.append(own)
            is_counted = True
            _set_switches()
        yield
    finally:
        with _ended:
            if is_counted:
                _trainings.remove(own)
            _set_switches()
            _ended.notify_all()


def _set_switches() -> None:
    """Set the switches for the training that came last; without one, as they were."""
    for owner, name, value in _before:
        if _trainings:
            value = _switch_value(name, _trainings[-1][1])
        setattr(owner, name, value)


def _read_switches() -> list[tuple[Any, str, Any]]:
    """Return the switches, and how they are set.

    By the older of torch's two interfaces: what the newer sets can keep others, such as
    its compiler, from reading the older. Where the user has used the newer, torch
    refuses to read the older.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    owners: list[Any] = [matmul, cudnn]
    try:
        return [(owner, "allow_tf32", owner.allow_tf32) for owner in owners]
    except RuntimeError:
        owners = [matmul, *(getattr(cudnn, kind) for kind in ("conv", "rnn"))]
        return [(owner, "fp32_precision", owner.fp32_precision) for owner in owners]


def _switch_value(name: str, is_short: bool) -> bool | str:
    if name == "allow_tf32":
        return is_short
    return "tf32" if is_short else "ieee"


def device_type(device: str | int | torch.device | None) -> str:
    """Return "cpu", "cuda" or the like; "cpu" where nobody says."""
    return torch.device("cpu" if device is None else device).type


def autocast(
    precision: str, device: str | int | torch.device | None
) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: half precision for "bf16".

    For others none at all: it would undo one of the caller's.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device_type(device), torch.bfloat16)
