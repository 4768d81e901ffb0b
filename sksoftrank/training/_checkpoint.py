"""The file that a fit goes on from: all that its training has come to."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sksoftrank import _format
from sksoftrank._digest import digest, shorten
from sksoftrank.modules._layers import RandomLayer
from sksoftrank.training._grouping import callbacks_of
from sksoftrank.training._loop import RecordError, Steps
from sksoftrank.training._member import Member
from sksoftrank.training._stopping import AccuracyStopping

# Of a training's time that goes into writing, at most: of short epochs some are not
# written.
SHARE = 1 / 20
_KIND = "checkpoint"
# What numpy has no numbers for is written as bytes.
_AS_BYTES = {"bfloat16": torch.bfloat16, "complex64": torch.complex64}
# Of a member's history, and of the best epoch.
_NAMES = ("train_loss", "lr", "temperature")
_BEST = ("accuracy", "loss", "epoch", "misses")
# What a file with another content leads to.
_MALFORMED = (
    *(ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    ArithmeticError,
)
_ADVICE = "Name another one, undo the change, or delete the file to start anew"


@dataclass
class _Slot:
    """A network that the fit trains, until its end, and what it has come to."""

    net: Any
    state: dict[str, Any] | None
    # Once its training has begun.
    member: Member | None = None


class Checkpoint:
    """The file of one fit, read where there is one, and written as it trains.

    It holds all networks that the fit has trained so far, those of its searches too:
    what these found is read off them again. A context around the training: the file
    goes when that has come to its end, and where it can't be gone on with. Otherwise
    it stays.

    Parameters
    ----------
    path : str or PathLike
        Where the file is, or will be.

    Attributes
    ----------
    seeds : dict of str to int, or None
        What the fit that wrote the file has drawn; None where there is no file.
    goes_on : bool
        Whether some network is to be gone on with.

    Raises
    ------
    ValueError
        If what is there is no such file, or was changed.
    OSError
        If it can't be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.seeds: dict[str, int] | None = None
        self._parts: dict[str, str] | None = None
        # Of all networks, in the order in which they are trained.
        self._slots: list[_Slot] = []
        self._recorded: list[Any] = []
        self._stays = self._is_interrupted = self._has_failed = False
        self._next = -math.inf
        try:
            content, arrays = _format.read(path, _KIND)
        except FileNotFoundError:
            return
        except _format.FormatError as error:
            self.refuse(error.what, error)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._parts, self.seeds = dict(content["fit"]), dict(content["seeds"])
            self._recorded = list(_unpack(content["networks"], arrays))
        except _MALFORMED as error:
            self.refuse("which no fit has written", error)
        self._stays = True

    @property
    def goes_on(self) -> bool:
        """Whether some network is to be gone on with."""
        return bool(self._recorded)

    def begin(
        self, parts: Mapping[str, str], seeds: dict[str, int], module: nn.Module
    ) -> None:
        """Refuse the file of another fit, or write one, before any training.

        Parameters
        ----------
        parts : mapping of str to str
            What tells one fit from another, by name.
        seeds : dict of str to int
            What the fit has drawn.
        module : Module
            A network with its initial weights.

        Raises
        ------
        ValueError
            If the file was written by another fit, or can't be written of this one.
        OSError
            If it can't be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        try:
            _pack(_tensors_of(module), "", arrays)
        except ValueError as error:
            raise ValueError(
                "checkpoint must be None for a network that can't be written, got "
                f"{os.fspath(self.path)!r} and one {error}. Convert it."
            ) from error
        parts = {**parts, "initial weights": digest(sorted(arrays.items()))}
        before = self._parts
        if before is not None:
            changed = [
                f"{part}: {shorten(before.get(part))} there, "
                f"{shorten(parts.get(part))} here"
                for part in sorted({*parts, *before})
                if parts.get(part) != before.get(part)
            ]
            if changed:
                self.refuse(f"of another fit: {'; '.join(changed)}")
            return
        self._parts, self.seeds = parts, seeds
        try:
            self._write()
        except _format.FormatError as error:
            self.refuse(error.what, error)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> OSError:
        what = f"checkpoint must be a path to read and write, but: {error.strerror}"
        return OSError(error.errno, what, os.fspath(self.path))

    def refuse(self, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise the error of a file that can't be gone on from."""
        raise RecordError(
            "checkpoint must be a new file or that of the same fit, got "
            f"{os.fspath(self.path)!r}, {what}. {_ADVICE}."
        ) from cause

    def __enter__(self) -> Self:
        return self

    def keep(self) -> bool:
        """Leave the file, if there is training in it, for a fit that goes on."""
        self._is_interrupted = self._stays
        return self._stays

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        last = self._slots[-1].member if self._slots else None
        # What has diverged would diverge again.
        is_lost = last is not None and isinstance(last.error, FloatingPointError)
        is_kept = error is not None and self._stays and not is_lost
        if self._is_interrupted or is_kept:
            return
        try:
            # A link stays one, as it does where the file is written.
            Path(os.path.realpath(self.path)).unlink(missing_ok=True)
        except OSError as reason:
            warnings.warn(
                f"checkpoint={os.fspath(self.path)!r} is of no use any more, but could "
                f"not be deleted: {reason}. Delete it.",
                UserWarning,
                stacklevel=3,
            )

    # -- Going on ----------------------------------------------------------------------

    def attach(self, net: Any) -> None:
        """Take note of the net to be trained next; give it the history that it had."""
        place = len(self._slots)
        state = None
        if place < len(self._recorded):
            state, self._recorded[place] = self._recorded[place], None
        self._slots.append(_Slot(net, state))
        if state is None:
            return
        try:
            for record in state["history"]:
                values = [*record.values(), *(record[name] for name in _NAMES)]
                are_numbers = all(isinstance(value, int | float) for value in values)
                if not (are_numbers and all(isinstance(name, str) for name in record)):
                    raise ValueError(f"{record}")
                net.history.append({"batches": [], **record})
            for stopping, own in zip(_stoppings(net), state["stopping"], strict=True):
                best = stopping.best_
                best.accuracy, best.loss = float(own["accuracy"]), float(own["loss"])
                best.epoch, best.misses = int(own["epoch"]), int(own["misses"])
                stopping.best_epoch_, stopping.misses_ = best.epoch, best.misses
                stopping.best_model_weights_ = own["weights"]
        except _MALFORMED as error:
            self.refuse("whose history is none", error)

    def restore(
        self, member: Member, load_optimizer: Callable[[dict[str, Any]], object]
    ) -> bool:
        """Give a member, and its optimizer, all that they had; return if that is so."""
        nets = {id(slot.net.module_): slot for slot in self._slots if slot.net}
        slot = nets[id(member.module)]
        slot.member, state = member, slot.state
        if state is None:
            return False
        try:
            _fill(_tensors_of(member.module), state["module"])
            for record, temperature in zip(
                state["history"], member.temperatures, strict=False
            ):
                # Of a schedule whose repr doesn't show what it holds.
                if record["temperature"] != temperature:
                    raise ValueError(f"trained at {record['temperature']}")
            member.history.extend(
                {"epoch": epoch, **{name: record[name] for name in _NAMES}}
                for epoch, record in enumerate(state["history"], start=1)
            )
            member.is_stopped = bool(state["is_stopped"])
            if state["error"] is not None:
                member.error = FloatingPointError(str(state["error"]))
            if state["optimizer"] is None:
                return True
            generators = _generators_of(member)
            for name, own in _same(generators, state["generators"]):
                if isinstance(own, torch.Generator):
                    own.set_state(state["generators"][name])
                else:
                    own.bit_generator.state = state["generators"][name]
            for device, own in zip(_globals(slot.net), state["globals"], strict=True):
                _set_global(device, own)
            load_optimizer(state["optimizer"])
        except _MALFORMED as error:
            self.refuse("whose training is none of this network's", error)
        return True

    # -- Writing -----------------------------------------------------------------------

    def write(self, steps: Steps) -> None:
        """Write what all networks have come to at the end of an epoch of some.

        Unless that would take more than a share of the time. What can't be written is
        told of, and costs no training.
        """
        if time.perf_counter() < self._next:
            return
        errors = [member.error for member in steps.members if member.error is not None]
        if any(not isinstance(error, FloatingPointError) for error in errors):
            return  # Not of the training's own making: the next one goes on before it.
        optimizers = {
            id(member): steps.optimizer_state(k)
            for k, member in enumerate(steps.members)
        }
        for slot in self._slots:
            if slot.member is None:
                continue
            optimizer = optimizers.get(id(slot.member))
            slot.state = _describe(slot.net, slot.member, optimizer)
            if optimizer is None:  # It has ended: no more is to be kept of it.
                slot.net = slot.member = None
        try:
            self._write()
            self._stays, self._has_failed = True, False
        except (OSError, ValueError) as error:
            if self._has_failed:
                return
            self._has_failed = True
            warnings.warn(
                f"checkpoint={os.fspath(self.path)!r} could not be written: {error}. "
                "The training goes on without, and tries again after later epochs; "
                "what was written before is as it was.",
                UserWarning,
                stacklevel=2,
            )

    def _write(self) -> None:
        start = time.perf_counter()
        arrays: dict[str, npt.NDArray[Any]] = {}
        states = [slot.state for slot in self._slots]
        content = {
            "fit": self._parts,
            "seeds": self.seeds,
            "networks": _pack(states, "networks", arrays),
        }
        try:
            _format.write(self.path, _KIND, content, arrays)
        finally:
            end = time.perf_counter()
            self._next = end + (end - start) / SHARE


def _describe(
    net: Any, member: Member, optimizer: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what a network has come to, without a copy.

    Of one that has ended, which has no optimizer any more, what it ended with.
    """
    state: dict[str, Any] = {
        "history": [
            {name: value for name, value in record.items() if name != "batches"}
            for record in net.history[: len(member.history)]
        ],
        "module": _tensors_of(member.module),
        "is_stopped": member.is_stopped,
        "error": None if member.error is None else str(member.error),
        "stopping": [
            {
                **{name: getattr(stopping.best_, name) for name in _BEST},
                "weights": stopping.best_model_weights_,
            }
            for stopping in _stoppings(net)
        ],
        "optimizer": optimizer,
    }
    if optimizer is not None:
        state["generators"] = {
            name: own.get_state()
            if isinstance(own, torch.Generator)
            else own.bit_generator.state
            for name, own in _generators_of(member).items()
        }
        state["globals"] = [_get_global(device) for device in _globals(net)]
    return state


def _stoppings(net: Any) -> list[AccuracyStopping]:
    return [c for c in callbacks_of(net) if isinstance(c, AccuracyStopping)]


def _globals(net: Any) -> list[torch.device]:
    """Return the devices whose global generators a training borrows."""
    if net.random_state is None:
        return []
    devices = [torch.device("cpu"), torch.device(net.device)]
    return devices[: 1 + (devices[1].type == "cuda")]


def _get_global(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _set_global(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    # Buffers that a module keeps out of its state_dict, too.
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _generators_of(member: Member) -> dict[str, Any]:
    """Return the generators of the order and of the layers, by name."""
    found: dict[str, Any] = {}
    device = next(member.module.parameters()).device
    for name, layer in member.module.named_modules():
        if isinstance(layer, RandomLayer):
            layer.generator_on(device)
        for attribute, value in vars(layer).items():
            if isinstance(value, torch.Generator | np.random.Generator):
                found[f"{name}.{attribute}"] = value
    for attribute in ("random_state", "generator"):
        order = getattr(member.batches, attribute, None)
        if isinstance(order, torch.Generator | np.random.Generator):
            found["order"] = order
    return found


def _same(own: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
    """Return the items of `own`, whose names must be those of `other`."""
    if own.keys() != other.keys():
        raise ValueError(f"{[*other]} in place of {[*own]}")
    return own.items()


def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Fill tensors in their own memory, in the order that they have there."""
    with torch.no_grad():
        for name, tensor in _same(tensors, values):
            value = values[name]
            if value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise ValueError(f"{name} of {value.dtype}{tuple(value.shape)}")
            tensor.copy_(value)


def _pack(value: Any, name: str, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    """Return what JSON takes in place of a value, and add its tensors to `arrays`."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        tensor = value.detach().cpu().contiguous()
        if dtype in _AS_BYTES:
            tensor = tensor.reshape(-1).view(torch.uint8)
        arrays[name] = array = tensor.numpy()
        if not _format.is_native(array.dtype):
            raise ValueError(f"with {name}, a tensor of {dtype}")
        return {"tensor": [name, dtype, list(value.shape)]}
    if isinstance(value, Mapping):
        return {
            "dict": [[k, _pack(v, f"{name}/{k}", arrays)] for k, v in value.items()]
        }
    if isinstance(value, list | tuple):
        items = [_pack(v, f"{name}/{i}", arrays) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"with {name}, a {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    """Return the value that `_pack` was given."""
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, own),) = value.items()
    if kind == "tensor":
        name, dtype, shape = own
        # In memory of torch's own, which is aligned.
        tensor = torch.tensor(arrays[name])
        if dtype in _AS_BYTES:
            tensor = tensor.view(_AS_BYTES[dtype])
        return tensor.reshape(shape)
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in own}
    if kind == "tuple":
        return tuple(_unpack(item, arrays) for item in own)
    if kind == "float":
        return float(own)
    raise ValueError(f"{kind!r} is none of these")
