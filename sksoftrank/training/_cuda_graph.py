"""Kernels on fixed memory, launched together as a CUDA graph.

A small network's kernels take less time than their launches. A graph launches them all
at once, but with the addresses and numbers of its capture: whatever changes between
two runs must be filled into the same memory.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import ClassVar, Protocol

import torch

# One at a time in a process: a capture begins by waiting for the whole device, which
# would spoil another's.
_capturing = threading.Lock()


class Recorder(Protocol):
    """Captures functions on a device."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run `function` where it will be captured."""

    def record(
        self, function: Callable[[], None], generators: list[torch.Generator]
    ) -> Callable[[], None]:
        """Return what repeats the kernels of `function`, which does not run here."""


class CudaRecorder:
    """Captures functions as CUDA graphs.

    All of a device on one stream: cuBLAS keeps a workspace for each that it has seen,
    of 32 MB on the larger devices.
    """

    _streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with _capturing:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
        self.stream = self._streams[device]

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run `function` on the stream of the captures.

        Modules that are loaded lazily, and workspaces of libraries, can't or should
        not come up in a capture.
        """
        here = torch.cuda.current_stream(self.device)
        # What another thread launched on the stream of a capture would be captured.
        with _capturing:
            self.stream.wait_stream(here)
            try:
                with torch.cuda.stream(self.stream):
                    function()
            finally:
                here.wait_stream(self.stream)

    def record(
        self, function: Callable[[], None], generators: list[torch.Generator]
    ) -> Callable[[], None]:
        """Return what launches the kernels of `function` as a graph."""
        with _capturing, torch.cuda.device(self.device):
            everyone = [
                *generators,
                torch.cuda.default_generators[torch.cuda.current_device()],
            ]
            states = [generator.get_state() for generator in everyone]
            graph = torch.cuda.CUDAGraph()
            try:
                # torch.cuda.graph leaves its stream current where it fails.
                with torch.cuda.stream(self.stream):
                    for generator in generators:
                        graph.register_generator_state(generator)
                    # Other threads may train, and allocate, meanwhile.
                    with torch.cuda.graph(
                        graph, stream=self.stream, capture_error_mode="thread_local"
                    ):
                        function()
            except BaseException:
                # torch may leave them as if the capture went on.
                for generator, state in zip(everyone, states, strict=True):
                    fresh = torch.Generator(self.device)
                    fresh.set_state(state)
                    generator.graphsafe_set_state(fresh)
                raise
            # A capture begins by setting generators to zero, on its own stream. Else
            # that could come after what the first launch sets them to.
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what captures functions on `device`; None where nothing can."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Graphs:
    """Runs functions on fixed memory, each from its second time on as a graph.

    Parameters
    ----------
    recorder : Recorder
        What captures them.
    generators : callable
        Returns the generators that the functions draw from.
    """

    def __init__(
        self, recorder: Recorder, generators: Callable[[], list[torch.Generator]]
    ) -> None:
        self._recorder = recorder
        self._generators = generators
        self._is_plain = False
        self._launches: dict[Hashable, Callable[[], None] | None] = {}

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run a function that `key` stands for."""
        if self._is_plain:
            function()
        elif key not in self._launches:
            # The first time is a warm-up of which nothing need be undone; and most
            # functions that come up once do so for the last time.
            self._recorder.warm_up(function)
            self._launches[key] = None
        else:
            launch = self._launches[key] or self._record(function)
            if not self._is_plain:
                self._launches[key] = launch
            launch()

    def _record(self, function: Callable[[], None]) -> Callable[[], None]:
        try:
            return self._recorder.record(function, self._generators())
        except RuntimeError as error:
            self._is_plain = True
            self.clear()  # The memory of others may be what was lacking.
            warnings.warn(
                f"Training steps could not be captured as a CUDA graph: {error}. They "
                "are launched one by one, with the same result in more time.",
                RuntimeWarning,
                stacklevel=2,
            )
            return function

    def clear(self) -> None:
        """Forget all graphs: their memory is no longer that of the functions."""
        self._launches.clear()
