"""How nets are trained: in stacks where they can be, else by autograd."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    GradientNormClipping,
    LRScheduler,
    ParamMapper,
    PassthroughScoring,
    PrintLog,
)
from torch import nn
from tqdm.auto import tqdm

from sksoftrank._skorch import optimizer_names
from sksoftrank._torch import has_hooks, has_step_hooks
from sksoftrank.losses import TemperatureCrossEntropyLoss
from sksoftrank.modules import CNN, MLP, Transformer
from sksoftrank.modules._layers import DTYPE, RandomLayer, borrowed_globals
from sksoftrank.training import _stacked
from sksoftrank.training._autograd import AutogradSteps
from sksoftrank.training._batches import InMemoryBatches
from sksoftrank.training._cuda_graph import Graphs, recorder_for
from sksoftrank.training._iterators import make_batches
from sksoftrank.training._loop import Record, RecordError, Steps, train
from sksoftrank.training._member import Member, StopFlag
from sksoftrank.training._precision import matmul_precision
from sksoftrank.training._stack_optimizer import check_optimizer

# Those of skorch that change nothing of a network but by its optimizer's parameters.
_HARMLESS = (
    *(Checkpoint, EarlyStopping, EpochScoring, EpochTimer, GradientNormClipping),
    *(LRScheduler, PassthroughScoring, PrintLog),
)
# Fewer steps take longer to capture than their launches.
LEAST_STEPS = 50
# Hooks that are called only where someone has them.
_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
_BATCHES_PARAMS = set(inspect.signature(make_batches).parameters) - {"loader_params"}


def callbacks_of(net: Any) -> list[Any]:
    """Return a net's callbacks: as given, where they have not been initialised."""
    given = getattr(net, "callbacks_", None)
    if given is None:
        given = net.callbacks if isinstance(net.callbacks, list | tuple) else []
    return [item[-1] if isinstance(item, tuple) else item for item in given]


def acts_on_batches(net: Any, *, training: bool) -> str | None:
    """Return who acts on batches, beyond steps and their mean loss; None if no one."""
    for callback in callbacks_of(net):
        if isinstance(callback, EpochScoring) and not callback.on_train:
            if not training:  # Its batch hook keeps predictions.
                return "EpochScoring"
            continue
        if (
            type(callback) is GradientNormClipping
            and callback.gradient_clip_norm_type == 2
        ):
            continue  # Every way to train clips.
        if isinstance(callback, LRScheduler) and callback.step_every == "epoch":
            continue
        kind = callback if isinstance(callback, type) else type(callback)
        if _has_own(kind, Callback, _BATCH_HOOKS):
            return kind.__name__
    if net.has_own_steps or _has_own(type(net), NeuralNet, _BATCH_HOOKS):
        return type(net).__name__
    return None


def _has_own(kind: type, base: type, names: Iterable[str]) -> bool:
    return any(getattr(kind, n, None) is not getattr(base, n) for n in names)


def unsupported_reason(net: Any) -> str | None:
    """Return why a net, initialised or not, can't train in a stack; None if it can."""
    module = net.module if isinstance(net.module, type) else type(net.module)
    if module is not MLP:
        return f"{module.__name__} is not a plain MLP"
    actor = acts_on_batches(net, training=True)
    if actor is not None:
        return f"{actor} acts on batches"
    for callback in callbacks_of(net):
        if isinstance(callback, LRScheduler) or (
            isinstance(callback, Checkpoint) and callback.f_optimizer is not None
        ):
            return f"{type(callback).__name__} needs torch's optimizer"
        if isinstance(callback, ParamMapper):
            return f"{type(callback).__name__} may freeze parameters"
    if net.precision == "bf16":
        return "precision='bf16' needs autograd"
    if net.compile:
        return "compile=True needs autograd"
    if net.verbose > 1:
        return "verbose above 1 shows a bar of batches"
    own_params = net.get_params_for("criterion").keys() - {"label_smoothing"}
    if net.criterion is not TemperatureCrossEntropyLoss or own_params:
        return f"the criterion is {net.criterion!r} with {sorted(own_params)}"
    own_params = net.get_params_for("iterator_train").keys() - _BATCHES_PARAMS
    if net.iterator_train is not make_batches or own_params or net.device is None:
        return "batches come from a DataLoader"
    try:
        check_optimizer(net.optimizer, _optimizer_options(net))
    except ValueError as error:
        return str(error)
    return None


def _optimizer_options(net: Any) -> dict[str, Any]:
    params = net.get_params_for("optimizer")
    return {k: v for k, v in params.items() if k not in ("lr", "weight_decay")}


def stack_key(net: Any) -> Hashable:
    """Return what nets, initialised or not, must agree in to train as one stack."""
    params = net.get_params_for("module")
    own = [params.get(name) for name in ("activation", "normalization")]
    return (
        *(_widths(net), *own, net.batch_size, str(net.device), net.precision),
        *(net.optimizer, repr(sorted(_optimizer_options(net).items()))),
    )


def _widths(net: Any) -> tuple[int, ...]:
    if isinstance(net.module, MLP):
        layers = [m for m in net.module.modules() if isinstance(m, nn.Linear)]
        return (*(layer.in_features for layer in layers), layers[-1].out_features)
    params = inspect.signature(MLP).bind(**net.get_params_for("module"))
    params.apply_defaults()
    own = params.arguments
    return (own["n_features"], *own["hidden_layer_sizes"], own["n_classes"])


def stack_size(net: Any, n_networks: int, n_workers: int = 1) -> int:
    """Return how many such nets to train together, the same for each worker."""
    return _stacked.stack_size(
        *(_widths(net), net.batch_size, n_networks, n_workers),
        torch.device(net.device),
    )


def stack_bytes(net: Any, n_networks: int) -> int:
    """Return the bytes that training so many such nets together takes."""
    return _stacked.stack_bytes(_widths(net), net.batch_size, n_networks)


def training_seconds(net: Any, n_rows: int) -> float:
    """Return about how long training such a net in a stack takes."""
    n_steps = net.max_epochs * -(-n_rows // net.batch_size)
    return _stacked.training_seconds(_widths(net), net.batch_size, n_steps)


def train_members(
    nets: Sequence[Any],
    members: Sequence[Member],
    stop: StopFlag | None = None,
    *,
    together: bool = False,
    checkpoint: Record | None = None,
) -> None:
    """Train the members of initialised nets, which end with their weights or errors.

    Parameters
    ----------
    nets : sequence of SoftRankNet
        Whose callbacks and settings hold.
    members : sequence of Member
        One for each.
    stop : StopFlag, default=None
        Once set, from another thread, training ends as Ctrl-C ends it.
    together : bool, default=False
        Whether nets that can be one stack are, however large. Otherwise a stack is of
        what stays in reach of the caches.
    checkpoint : Record, default=None
        What they go on from, and are written to.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came before each of those that train together had finished an epoch.
    """
    loaded: dict[tuple[int, str], Any] = {}
    groups: dict[Hashable, list[tuple[Any, Member]]] = {}
    for net, member in zip(nets, members, strict=True):
        for batches in (member.batches, member.valid):
            if isinstance(batches, InMemoryBatches):
                batches.load(loaded)
        is_stackable = _can_be_stacked(net, member)
        key: Hashable = id(net)
        if is_stackable:
            # Those that go on from a checkpoint may have come to different epochs.
            n_done = len(net.history)
            key = (stack_key(net), _stacked.stack_key(member), n_done)
        groups.setdefault(key, []).append((net, member))
    for key, group in groups.items():
        size = len(group)
        if isinstance(key, tuple) and not together:
            size = stack_size(group[0][0], len(group))
        for start in range(0, len(group), size):
            part = group[start : start + size]
            net = part[0][0]
            own = [member for _, member in part]
            try:
                with matmul_precision(net.precision, net.device), _seeded(net):
                    if isinstance(key, tuple):
                        options = _optimizer_options(net)
                        steps: Steps = _stacked.StackSteps(
                            own, net.optimizer, options, stop
                        )
                    else:
                        steps = _autograd_steps(net, own[0], stop)
                    train(steps, checkpoint)
            except RecordError:
                raise
            except Exception as error:  # E.g. the device's memory is exhausted.
                for member in own:
                    member.error = error


def _can_be_stacked(net: Any, member: Member) -> bool:
    return (
        unsupported_reason(net) is None
        and not net.has_optimizer_  # Its state is to be gone on with.
        and isinstance(member.batches, InMemoryBatches)
        and all(p.requires_grad and p.dtype == DTYPE for p in net.module_.parameters())
        and not any(map(has_hooks, net.module_.modules()))
    )


def _seeded(net: Any) -> AbstractContextManager[None]:
    if net.random_state is None:
        return nullcontext()
    # Anew in each training that goes on.
    seed = net.random_state + len(net.history)
    return borrowed_globals(seed, torch.device(net.device))


def _autograd_steps(net: Any, member: Member, stop: StopFlag | None) -> Steps:
    clippings = [c for c in callbacks_of(net) if isinstance(c, GradientNormClipping)]

    def clip() -> None:
        for clipping in clippings:
            clipping.on_grad_computed(net, net.module_.named_parameters())

    def show(batches: Iterable[Any]) -> Iterable[Any]:
        if net.verbose <= 1:
            return batches
        epoch = f"epoch {len(net.history)}"
        return tqdm(batches, desc=epoch, unit="batch", leave=False)

    def run_epoch(batches: Iterator[Any]) -> float:
        net.run_single_epoch(
            batches, True, "train", net.train_step, **(member.forward_params or {})
        )
        names = ["train_batch_size", "train_loss"]
        sizes, losses = zip(*net.history[-1, "batches", :, names], strict=True)
        return float(np.average(losses, weights=sizes))

    optimizer = net.optimizer_  # Built if need be: skorch then knows its name.
    # Who acts on batches gets skorch's own epoch.
    is_whole = (
        acts_on_batches(net, training=True) is not None
        or bool(member.forward_params)
        or optimizer_names(net) != ["optimizer"]
        or isinstance(optimizer, torch.optim.LBFGS)
    )
    return AutogradSteps(
        *(member, optimizer, net.criterion_),
        device=net.device,
        precision=net.precision,
        clip=clip if clippings else None,
        show=show,
        run_epoch=run_epoch if is_whole else None,
        graphs=None if is_whole else _graphs(net, member),
        stop=stop,
    )


def _graphs(net: Any, member: Member) -> Graphs | None:
    """Return what launches a net's steps as graphs; None where nothing can.

    A graph repeats what Python did once, so that all of it must be ours or torch's,
    and no callback may change it.
    """
    device = next(net.module_.parameters()).device  # With its number.
    recorder = recorder_for(device)
    optimizer, batches = net.optimizer_, member.batches
    is_known = (
        type(net.module_) in (CNN, MLP, Transformer)
        and all(
            _is_of(type(m), "torch.nn", "sksoftrank.modules") for m in _modules(net)
        )
        and not any(map(has_hooks, _modules(net)))
        and type(net.criterion_) is TemperatureCrossEntropyLoss
        and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
        and optimizer.defaults["fused"]
        and not has_step_hooks(optimizer)
        and isinstance(batches, InMemoryBatches)
        and all(
            type(callback) in _HARMLESS or _is_of(type(callback), "sksoftrank")
            for callback in callbacks_of(net)
        )
    )
    if recorder is None or not is_known:
        return None
    # Other temperatures ask for other graphs.
    n_epochs = 1 if len(set(member.temperatures)) > 1 else len(member.temperatures)
    if n_epochs * len(batches) < LEAST_STEPS:
        return None

    def generators() -> list[torch.Generator]:
        layers = [m for m in _modules(net) if isinstance(m, RandomLayer)]
        made = [layer.generator_on(device) for layer in layers]
        return [generator for generator in made if generator is not None]

    return Graphs(recorder, generators)


def _modules(net: Any) -> list[nn.Module]:
    return [*net.module_.modules()]


def _is_of(kind: type, *packages: str) -> bool:
    return any(f"{kind.__module__}.".startswith(f"{name}.") for name in packages)
