"""The precision of a training's arithmetic, which torch keeps in global switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch

PRECISIONS = ("float32", "bf16", "tf32")

# Trainings may run in several threads; the first to come finds what the last restores.
_lock = Lock()
_n_trainings = 0
_before: list[tuple[Any, str, Any]] = []


@contextmanager
def matmul_precision(
    precision: str, device: str | torch.device | None
) -> Iterator[None]:
    """Let CUDA shorten the factors of products to 10 bits for "tf32", else forbid it.

    torch's own default shortens those of convolutions. Other devices have no such
    choice.
    """
    global _n_trainings
    if device_type(device) != "cuda":
        yield
        return
    with _lock:
        if _n_trainings == 0:
            _before[:] = _read_switches()
        _n_trainings += 1
        for owner, name, _ in _before:
            setattr(owner, name, _switch_value(name, precision == "tf32"))
    try:
        yield
    finally:
        with _lock:
            _n_trainings -= 1
            if _n_trainings == 0:
                for owner, name, value in _before:
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
