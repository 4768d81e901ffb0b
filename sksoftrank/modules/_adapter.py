"""Any network as one that splits into an embedding and a head."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from sksoftrank.modules._protocol import EmbedHeadModule

# Names by which a network's maker may ask for what only the data can tell.
_FEATURES = ("n_features", "in_features")
_CLASSES = ("n_classes", "num_classes")


class AdaptedModule(EmbedHeadModule):
    """A network of the user's own, with its head found.

    The head is the network's own ``head`` where it has that and ``embed``; else the
    Linear layer that ``get_classifier()`` returns, as in timm; else the last Linear
    layer to run. What goes into it is the embedding.

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
        if random_state is None:
            self.module = self._make(module, module_params, n_classes, None)
        else:
            # A module's initialisation draws from torch's global generator.
            with torch.random.fork_rng([]):
                torch.manual_seed(random_state)
                self.module = self._make(module, module_params, n_classes, random_state)
        self.head_name: str | None = None
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
            return copy.deepcopy(module)
        n_features = 1
        for size in self.input_shape:
            n_features *= size
        known = {
            **dict.fromkeys(_FEATURES, n_features),
            **dict.fromkeys(_CLASSES, n_classes),
            "input_shape": self.input_shape,
            "random_state": random_state,
        }
        named = inspect.signature(module).parameters
        asked_for = {name: value for name, value in known.items() if name in named}
        made = module(**{**asked_for, **params})
        if not isinstance(made, nn.Module):
            raise ValueError(
                "module must make a torch.nn.Module, got "
                f"{type(made).__name__} from {module!r}. Return the network."
            )
        return made

    @property
    def _has_protocol(self) -> bool:
        return callable(getattr(self.module, "embed", None)) and callable(
            getattr(self.module, "head", None)
        )

    def _examine(self, n_classes: int) -> int:
        """Run two rows, find the head, and return the width of the embedding."""
        was_training = self.module.training
        self.module.eval()
        x = torch.zeros(2, *self.input_shape)
        parameter = next(self.module.parameters(), None)
        if parameter is not None:
            x = x.to(parameter.device)
        ran: list[tuple[str, Tensor, Tensor]] = []
        handles = [
            layer.register_forward_hook(
                lambda _, inputs, output, name=name: ran.append(
                    (name, inputs[0], output)
                )
            )
            for name, layer in self.module.named_modules()
            if isinstance(layer, nn.Linear)
        ]
        name = type(self.module).__name__
        try:
            with torch.no_grad():
                logits = find_logits(self.module(x))
                embedding = self._call("embed", x) if self._has_protocol else None
        except Exception as error:
            raise ValueError(
                f"module must take rows of shape {self.input_shape} and return logits, "
                f"but {name} failed: {type(error).__name__}: {error}. Give the shape "
                "that it takes to X, or change module_params."
            ) from error
        finally:
            for handle in handles:
                handle.remove()
            self.module.train(was_training)
        if logits.shape != (2, n_classes):
            raise ValueError(
                f"module must return logits of shape (n, {n_classes}), a column for "
                f"each class, got {tuple(logits.shape)} for two rows from {name}. Set "
                "its number of outputs, e.g. in module_params."
            )
        if embedding is None:
            embedding = self._find_head(ran, logits, name)
        if embedding.ndim != 2 or len(embedding) != 2:
            raise ValueError(
                "module must have an embedding of shape (n, d), got "
                f"{tuple(embedding.shape)} for two rows from {name}. Pool or flatten "
                "before the head."
            )
        return embedding.shape[1]

    def _find_head(
        self, ran: list[tuple[str, Tensor, Tensor]], logits: Tensor, name: str
    ) -> Tensor:
        classifier = getattr(self.module, "get_classifier", None)
        if callable(classifier):
            own: Any = classifier()
            names = [n for n, layer in self.module.named_modules() if layer is own]
            ran = [entry for entry in ran if entry[0] in names]
        # The last to run is the head only if nothing follows it.
        for head_name, inputs, output in ran[-1:]:
            if output.shape == logits.shape and torch.equal(output, logits):
                self.head_name = head_name
                return inputs
        raise ValueError(
            "module must end in a Linear layer whose output is the logits, or have "
            f"methods embed(x) and head(z), got {name}. Return logits without a "
            "softmax, or write the two methods."
        )

    @property
    def network(self) -> nn.Module:
        """The network of the user's own."""
        return self.module

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of `x` (n, ...)."""
        return find_logits(self.module(x.reshape(-1, *self.input_shape)))

    def embed(self, x: Tensor) -> Tensor:
        """Return what the head takes in, (n, d), of `x` (n, ...)."""
        x = x.reshape(-1, *self.input_shape)
        if self.head_name is None:
            return self._call("embed", x)
        taken: list[Tensor] = []
        thread = get_ident()

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:  # Another thread may run the same module.
                taken.append(inputs[0])

        layer = self.module.get_submodule(self.head_name)
        handle = layer.register_forward_pre_hook(keep)
        try:
            self.module(x)
        finally:
            handle.remove()
        return taken[-1]

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        if self.head_name is None:
            return self._call("head", z)
        return self.module.get_submodule(self.head_name)(z)

    def _call(self, method: str, x: Tensor) -> Tensor:
        function: Callable[[Tensor], Tensor] = getattr(self.module, method)
        return function(x)


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
