"""Any network as one that splits into an embedding and a head."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from threading import get_ident
from typing import Any, Self

import torch
from torch import Tensor, nn

from sksoftrank.modules._layers import DTYPE, borrowed_globals, make_generator
from sksoftrank.modules._protocol import EmbedHeadModule

# Names by which a network's maker may ask for what only the data can tell.
_FEATURES = ("n_features", "in_features")
_CLASSES = ("n_classes", "num_classes")


class AdaptedModule(EmbedHeadModule):
    """A network of the user's own, with its head found.

    The head is the network's own ``head`` where it has that and ``embed``, and they
    give its logits; else the Linear layer that ``get_classifier()`` returns, as in
    timm; else the last Linear layer to run. What goes into it is the embedding.
    Parameters are turned to single precision.

    Parameters
    ----------
    module : type, callable or torch.nn.Module
        What makes the network, or the network itself, which is copied.
    module_params : dict
        Arguments for what makes it; ``n_features``, ``in_features``, ``n_classes``,
        ``num_classes``, ``input_shape`` and ``random_state`` are added where its
        signature names them.
    input_shape : tuple of int
        Of one row.
    n_classes : int
        Width that the logits must have.
    random_state : int, default=None
        Seed of the initial weights. None draws from torch's global generator.

    Raises
    ------
    ValueError
        If the network can't be made or run, its output is not logits (n, n_classes),
        or no head is found.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sksoftrank.modules import AdaptedModule
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> module = AdaptedModule(net, {}, input_shape=(4,), n_classes=3)
    >>> module.head_name, module.embed(torch.zeros(2, 4)).shape
    ('2', torch.Size([2, 8]))
    """

    def __init__(
        self,
        module: Any,
        module_params: Mapping[str, Any],
        input_shape: Sequence[int],
        n_classes: int,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.head_name: str | None = None
        self.runs_in_double = True
        # A module's initialisation draws from torch's global generator; that of lazy
        # layers once they run.
        seeding = (
            nullcontext() if random_state is None else borrowed_globals(random_state)
        )
        with seeding:
            self.module = self._make(module, module_params, n_classes, random_state)
            self.embedding_width = self._examine(n_classes)

    def _make(
        self,
        module: Any,
        params: Mapping[str, Any],
        n_classes: int,
        random_state: int | None,
    ) -> nn.Module:
        if isinstance(module, nn.Module):
            if params:
                raise ValueError(
                    "module_params must be empty where module is a network already, "
                    f"got {dict(params)!r}. Pass its class, or leave them out."
                )
            return copy.deepcopy(module).float()
        n_features = math.prod(self.input_shape)
        known = {
            **dict.fromkeys(_FEATURES, n_features),
            **dict.fromkeys(_CLASSES, n_classes),
            "input_shape": self.input_shape,
            "random_state": random_state,
        }
        try:
            named = inspect.signature(module).parameters
            asked_for = {name: value for name, value in known.items() if name in named}
            made = module(**{**asked_for, **params})
        except Exception as error:
            raise ValueError(
                "module_params must be what module can be called with, got "
                f"{dict(params)!r} for {module!r}, which failed: "
                f"{type(error).__name__}: {error}. Only {list(known)} are added, where "
                "its signature names them."
            ) from error
        if not isinstance(made, nn.Module):
            raise ValueError(
                "module must make a torch.nn.Module, got "
                f"{type(made).__name__} from {module!r}. Return the network."
            )
        return made.float()

    def _examine(self, n_classes: int) -> int:
        """Run two rows, find the head, and return the width of the embedding."""
        name = type(self.module).__name__
        parameter = next((p for p in self.module.parameters() if p.requires_grad), None)
        if parameter is None:
            raise ValueError(
                "module must have parameters to train, got none that require a gradient"
                f" in {name}. Leave its head trainable at least."
            )
        was_training = self.module.training
        self.module.eval()
        # In [0, 1), like pixels; and zeros to who takes them for codes.
        x = torch.rand(2, *self.input_shape, generator=make_generator(0), dtype=DTYPE)
        x = x.to(parameter.device)
        try:
            with torch.no_grad():
                try:
                    logits, ran = self._run_linear(x)
                except Exception as error:
                    raise ValueError(
                        f"module must take rows of shape {self.input_shape} and return "
                        f"logits, but {name} failed: {type(error).__name__}: {error}. "
                        "Give the shape that it takes to X, or change module_params."
                    ) from error
                if logits.shape != (2, n_classes):
                    raise ValueError(
                        f"module must return logits of shape (n, {n_classes}), a column"
                        f" for each class, got {tuple(logits.shape)} for two rows from "
                        f"{name}. Set its number of outputs, e.g. in module_params."
                    )
                self.runs_in_double = self._can_run_in_double(x)
                embedding = self._own_embedding(x, logits)
                if embedding is None:
                    embedding = self._find_head(x, ran, logits)
        finally:
            self.module.train(was_training)
        if embedding.ndim != 2 or len(embedding) != 2:
            raise ValueError(
                "module must have an embedding of shape (n, d), got "
                f"{tuple(embedding.shape)} for two rows from {name}. Pool or flatten "
                "before the head."
            )
        return embedding.shape[1]

    def _run_linear(self, x: Tensor) -> tuple[Tensor, list[str]]:
        """Return the logits, and the names of the Linear layers in the order run."""
        ran: list[str] = []
        handles = [
            layer.register_forward_hook(lambda *_, name=name: ran.append(name))
            for name, layer in self.module.named_modules()
            if isinstance(layer, nn.Linear)
        ]
        try:
            return find_logits(self.module(x)), ran
        finally:
            for handle in handles:
                handle.remove()

    def _can_run_in_double(self, x: Tensor) -> bool:
        if x.device.type == "mps":  # It has no double precision, nor is it asked for.
            return True
        try:
            copy.deepcopy(self.module).double()(x.double())
        except Exception:  # Whatever a module does that is tied to single precision.
            return False
        return True

    def _own_embedding(self, x: Tensor, logits: Tensor) -> Tensor | None:
        """Return what the network's own `embed` gives if its `head` goes on from there.

        Other networks have methods or layers of these names too, such as the embedding
        of patches, which only the first of many layers sees.
        """
        own = [getattr(self.module, name, None) for name in ("embed", "head")]
        if not all(map(callable, own)):
            return None
        try:
            z = self._call("embed", x)
            same = torch.allclose(self._call("head", z), logits, rtol=1e-4, atol=1e-5)
        except Exception:  # They are for something else.
            return None
        # Logits are zero where its weights still are: they prove little then.
        if isinstance(own[1], nn.Module):
            taken = self._input_of(own[1], x)
            same = same and (taken is None or torch.equal(taken, z))
        return z if same else None

    def _find_head(self, x: Tensor, ran: list[str], logits: Tensor) -> Tensor:
        classifier = getattr(self.module, "get_classifier", None)
        if callable(classifier):
            own: Any = classifier()
            names = [n for n, layer in self.module.named_modules() if layer is own]
            ran = [name for name in ran if name in names]
        # The last to run is the head only if nothing follows it: what is put in the
        # place of its output has to come out. Large, lest a clipping goes unnoticed.
        probe = torch.linspace(-1e4, 1e4, logits.numel()).view(logits.shape)
        probe = probe.to(logits)
        for name in ran[-1:]:
            layer = self.module.get_submodule(name)
            handle = layer.register_forward_hook(lambda *_: probe.clone())
            try:
                output = find_logits(self.module(x))
            finally:
                handle.remove()
            taken = self._input_of(layer, x)
            if taken is not None and torch.equal(output, probe):
                self.head_name = name
                return taken
        raise ValueError(
            "module must end in a Linear layer whose output is the logits, or have "
            "methods embed(x) and head(z) that forward composes, got "
            f"{type(self.module).__name__}. Return logits without a softmax, or write "
            "the two methods."
        )

    @property
    def network(self) -> nn.Module:
        """The network of the user's own."""
        return self.module

    def double(self) -> Self:
        """Go to double precision, unless the network can't run in it."""
        return super().double() if self.runs_in_double else self

    def _take(self, x: Tensor) -> Tensor:
        parameter = next(p for p in self.module.parameters() if p.requires_grad)
        return x.reshape(-1, *self.input_shape).to(parameter.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of `x` (n, ...)."""
        return find_logits(self.module(self._take(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Return what the head takes in, (n, d), of `x` (n, ...)."""
        x = self._take(x)
        if self.head_name is None:
            return self._call("embed", x)
        taken = self._input_of(self.module.get_submodule(self.head_name), x)
        assert taken is not None
        return taken

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        if self.runs_in_double:
            return self._apply_head(z)
        return self._apply_head(z.float()).to(z.dtype)

    def _apply_head(self, z: Tensor) -> Tensor:
        if self.head_name is None:
            return self._call("head", z)
        return self.module.get_submodule(self.head_name)(z)

    def _call(self, method: str, x: Tensor) -> Tensor:
        function: Callable[[Tensor], Tensor] = getattr(self.module, method)
        return function(x)

    def _input_of(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Return what goes into a layer, None if it does not run."""
        taken: list[Tensor] = []
        thread = get_ident()

        def keep(
            layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
        ) -> None:
            if get_ident() == thread:  # Another thread may run the same module.
                taken.extend([*inputs, *named.values()][:1])

        handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.module(x)
        finally:
            handle.remove()
        return taken[-1] if taken else None


def find_logits(output: Any) -> Tensor:
    """Return the logits in what a network returns."""
    if isinstance(output, Mapping):
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(
            "forward must return a tensor, a tuple that starts with one, or an object "
            f"with logits, got {type(output).__name__}"
        )
    return output
