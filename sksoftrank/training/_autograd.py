"""Steps by autograd: of any module, batches from anywhere, reduced precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from skorch.utils import to_tensor
from torch import Tensor, nn

from sksoftrank.losses import TemperatureCrossEntropyLoss
from sksoftrank.training._cuda_graph import Graphs
from sksoftrank.training._member import Member, StopFlag
from sksoftrank.training._precision import autocast
from sksoftrank.training._stopping import divergence


class AutogradSteps:
    """Trains one member with torch's own optimizer.

    The optimizer's learning rate and the criterion's temperature are the caller's to
    set. `clip` is called when gradients are there; `show` yields an epoch's batches,
    with a progress bar say; `run_epoch` trains on them, in place of the plain steps
    here, and returns the mean loss. `graphs` launch the plain steps, of a module whose
    Python does the same in each.
    """

    def __init__(
        self,
        member: Member,
        optimizer: torch.optim.Optimizer,
        criterion: TemperatureCrossEntropyLoss,
        *,
        device: Any = "cpu",
        precision: str = "float32",
        clip: Callable[[], object] | None = None,
        show: Callable[[Iterable[Any]], Iterable[Any]] = iter,
        run_epoch: Callable[[Iterator[Any]], float] | None = None,
        graphs: Graphs | None = None,
        stop: StopFlag | None = None,
    ) -> None:
        self.members = [member]
        self.member = member
        self.optimizer, self.criterion = optimizer, criterion
        self.device, self.precision = device, precision
        self.clip, self.show, self.run_epoch = clip, show, run_epoch
        self.stop = stop
        self.graphs = graphs
        # To read is to wait for all that the device has yet to do.
        is_on_cpu = torch.device(device or "cpu").type == "cpu"
        self._most_unread = 1 if is_on_cpu and graphs is None else 1000
        # What the graphs were recorded with, and the memory that they read and write.
        self._settings: tuple[Any, ...] = ()
        self._rates: list[Tensor] = []
        self._memory: dict[Hashable, list[Tensor]] = {}
        self._last_x: Any = None
        self._kept = [tensor.detach().clone() for tensor in self._state()]
        self._is_kept = True

    def _state(self) -> list[Tensor]:
        return list(self.member.module.state_dict().values())

    def threads(self) -> AbstractContextManager[None]:
        """Return a context that leaves the threads as the user has them."""
        return nullcontext()

    def train_epoch(self, epoch: int) -> tuple[list[float], dict[int, Exception]]:
        """Train for an epoch; return its mean loss, or the error it ended with."""
        self._is_kept = False
        try:
            with torch.enable_grad():
                if self.run_epoch is not None:
                    return [self.run_epoch(self._batches())], {}
                return [self._run(epoch)], {}
        except Exception as error:
            return [math.nan], {0: error}

    def _batches(self) -> Iterator[Any]:
        for batch in self.show(self.member.batches):
            if self.stop is not None and self.stop.is_set:
                raise KeyboardInterrupt
            self._last_x = batch[0]
            yield batch

    def _run(self, epoch: int) -> float:
        self.member.module.train()
        self._fill_settings()
        losses: list[float] = []
        unread: list[Tensor] = []
        sizes: list[int] = []

        def read() -> None:
            values = torch.stack(unread).tolist() if unread else []
            unread.clear()
            losses.extend(values)
            for step, value in enumerate(values, start=len(losses) - len(values) + 1):
                if not math.isfinite(value):
                    if self._most_unread > 1:  # Its means have been spoilt since.
                        self.optimizer.state.clear()
                    raise divergence(
                        value,
                        f"step {step} of epoch {epoch}",
                        self.member.temperatures[epoch - 1],
                        self.optimizer.param_groups[0]["lr"],
                    )

        for x, y in self._batches():
            target = y if isinstance(y, tuple | list) else (y,)
            target = to_tensor(target, device=self.device)
            sizes.append(len(target[0]))
            unread.append(self._take_step(x, target))
            if len(unread) == self._most_unread:
                read()
        read()
        return float(np.average(losses, weights=sizes))

    def _take_step(self, x: Any, target: Sequence[Tensor]) -> Tensor:
        """Step on some rows, by a graph where there are any; return their mean loss."""
        if self.graphs is None:
            return self._step(x, target)
        rows = [x, *target]
        shapes = tuple(tensor.shape for tensor in rows)
        if shapes not in self._memory:
            self._memory[shapes] = [
                *(torch.empty_like(tensor) for tensor in rows),
                torch.empty((), dtype=torch.float32, device=x.device),
            ]
        *places, loss = self._memory[shapes]
        for place, tensor in zip(places, rows, strict=True):
            place.copy_(tensor)
        self.graphs.run(shapes, partial(self._step_in_place, places, loss))
        return loss.clone()

    def _step_in_place(self, rows: Sequence[Tensor], loss: Tensor) -> None:
        x, *target = rows
        with self._rates_in_memory():
            loss.copy_(self._step(x, target))

    def _step(self, x: Any, target: Sequence[Tensor]) -> Tensor:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:  # zero_grad, less its profiler hook
                parameter.grad = None
        loss = self.criterion(self._logits(x), *target)
        if self._most_unread == 1 and not math.isfinite(loss.item()):
            return loss.detach()  # The step would spoil weights and means.
        loss.backward()
        if self.clip is not None:
            self.clip()
        self.optimizer.step()
        return loss.detach()

    def _fill_settings(self) -> None:
        """Let graphs know of learning rates, and forget those of other settings."""
        if self.graphs is None:
            return
        groups = self.optimizer.param_groups
        rates = torch.tensor([group["lr"] for group in groups], dtype=torch.float32)
        if not self._rates:
            self._rates = [*rates.to(self.device)]
        for own, rate in zip(self._rates, rates, strict=True):
            own.copy_(rate)
        settings = (
            self.criterion.temperature,
            *(
                (name, value)
                for group in groups
                for name, value in group.items()
                if name not in ("params", "lr")
            ),
        )
        if settings != self._settings:
            self.graphs.clear()
        self._settings = settings

    @contextmanager
    def _rates_in_memory(self) -> Iterator[None]:
        """Let the optimizer take learning rates from where a graph may read them."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update(own)

    def _logits(self, x: Any) -> Tensor:
        return _forward(self.member.module, x, self.device, self.precision)

    def is_finite(self, k: int) -> bool:
        """Return whether the logits of the last batch are finite."""
        if self._last_x is None:
            return True
        self.member.module.eval()
        with torch.no_grad():
            return bool(self._logits(self._last_x).isfinite().all())

    def keep(self, k: int) -> None:
        """Take note of the weights as those to return to."""
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self._state(), strict=True):
                kept.copy_(tensor)
        self._is_kept = True

    def drop(self, places: Sequence[int]) -> None:
        """Let the member go, with the weights last kept."""
        if len(places) == 0:
            return
        if not self._is_kept:
            names = self.member.module.state_dict()
            state = dict(zip(names, self._kept, strict=True))
            self.member.module.load_state_dict(state)
        if self.graphs is not None:  # Gradients lie in the memory of a graph.
            self.graphs.clear()
            self.optimizer.zero_grad()
        self.members = []

    def optimizer_state(self, k: int) -> dict[str, Any]:
        """Return torch's dictionary of the optimizer's state."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_optimizer_state(self, k: int, state: dict[str, Any]) -> None:
        """Let the optimizer go on from such a dictionary.

        Its fused kernels walk through a parameter's memory and that of its states
        side by side: they must have the same order.
        """
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        for index, own in state["state"].items():
            parameter = parameters[index]
            for name, value in own.items():
                if not isinstance(value, Tensor):
                    continue
                if value.shape == parameter.shape:
                    like = torch.empty_like(parameter, dtype=value.dtype)
                    own[name] = like.copy_(value)
                elif value.ndim and self.optimizer.defaults.get("fused"):
                    raise ValueError(
                        f"{tuple(value.shape)} in place of {tuple(parameter.shape)}"
                    )
        self.optimizer.load_state_dict(state)


def validate(
    module: nn.Module,
    batches: Iterable[Any],
    criterion: TemperatureCrossEntropyLoss,
    *,
    device: Any,
    precision: str,
) -> dict[str, float]:
    """Return a network's loss and weighted accuracy on rows held out."""
    module.eval()
    losses, hits, weights = [], [], []
    with torch.no_grad():
        for x, y in batches:
            target = y if isinstance(y, tuple | list) else (y,)
            target = to_tensor(target, device=device)
            logits = _forward(module, x, device, precision)
            losses.append(criterion(logits, *target))
            hits.append(logits.argmax(dim=1) == target[0])
            weights.append(target[1] if len(target) > 1 else torch.ones(len(logits)))
    # Read at the end: to read is to wait for all that the device has yet to do.
    sizes = [len(hit) for hit in hits]
    hit = torch.cat(hits).cpu().double()
    weight = torch.cat(weights).cpu().double()
    return {
        "valid_loss": float(np.average(torch.stack(losses).tolist(), weights=sizes)),
        "valid_acc": float((weight @ hit) / weight.sum()),
    }


def _forward(module: nn.Module, x: Any, device: Any, precision: str) -> Tensor:
    x = to_tensor(x, device=device)
    with autocast(precision, device):
        output = module(**x) if isinstance(x, dict) else module(x)
    logits: Tensor = as_logits(output)
    return logits


def as_logits(output: Any) -> Any:
    """Return the logits among a module's outputs, in single precision.

    The loss needs what half precision cuts off.
    """
    logits = output[0] if isinstance(output, tuple) else output
    is_half = isinstance(logits, Tensor) and logits.dtype == torch.bfloat16
    return logits.float() if is_half else logits
