"""The precision of a training's arithmetic, which torch keeps in global switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = ("float32", "bf16", "tf32")


@contextmanager
def matmul_precision(
    precision: str, device: str | torch.device | None
) -> Iterator[None]:
    """Let CUDA shorten the factors of products to 10 bits for "tf32", else forbid it.

    torch's own default shortens those of convolutions. Other devices have no such
    choice.
    """
    if torch.device(device or "cpu").type != "cuda":
        yield
        return
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def autocast(precision: str, device: str | torch.device | None) -> torch.autocast:
    """Return the context of a forward pass: half precision for "bf16"."""
    return torch.autocast(
        torch.device(device or "cpu").type, torch.bfloat16, enabled=precision == "bf16"
    )
