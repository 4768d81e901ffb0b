"""The multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sksoftrank.modules._protocol import EmbedHeadModule

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
}
# The gain that keeps a layer's variance, by torch's names; GELU and SiLU are treated
# as the ReLU they approximate.
_GAIN = {"identity": "linear", "relu": "relu", "gelu": "relu", "silu": "relu"}


class Dropout(nn.Module):
    """Dropout whose masks come from a generator of its own.

    torch's dropout draws from the global generator, so that a fit would depend on
    whatever else draws from it, and on which thread comes first.
    """

    def __init__(self, p: float, random_state: int | None = None) -> None:
        super().__init__()
        self.p = p
        self.random_state = random_state
        self._generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return x * self.fill_mask(torch.empty_like(x))

    def fill_mask(self, mask: Tensor) -> Tensor:
        """Fill `mask` with 0 for units to drop and 1 / (1 - p) for the others."""
        if self.random_state is not None and (
            self._generator is None or self._generator.device != mask.device
        ):
            self._generator = torch.Generator(mask.device)
            self._generator.manual_seed(self.random_state)
        keep = 1.0 - self.p
        return mask.bernoulli_(keep, generator=self._generator).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"

    def __getstate__(self) -> dict[str, Any]:
        # A generator's state is 5 kB and serves training alone.
        return {**self.__dict__, "_generator": None}


class MLP(EmbedHeadModule):
    """Multi-layer perceptron: linear, normalisation, activation, dropout; repeated.

    Parameters
    ----------
    n_features : int
        Width of the input.
    n_classes : int
        Width of the output.
    hidden_layer_sizes : sequence of int, default=(128, 128)
        Width of each hidden layer; the last is the width of the embedding.
    activation : {"identity", "relu", "gelu", "silu", "tanh"}, default="relu"
        Nonlinearity of the hidden layers.
    dropout : float, default=0.0
        In [0, 1). Probability that a hidden unit is zeroed in a training step.
    normalization : {None, "batch", "layer"}, default=None
        Normalisation before each activation.
    init_scale : float, default=1.0
        Factor on the initial weights of all layers. Without normalisation a scale
        ``a`` over ``L`` layers acts like the temperature ``a ** -L``.
    random_state : int, default=None
        Seed of the initial weights and of the dropout masks. None draws from torch's
        global generator.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.modules import MLP
    >>> module = MLP(4, 3, hidden_layer_sizes=(16, 8), random_state=0)
    >>> z = module.embed(torch.zeros(2, 4))
    >>> z.shape, module.head(z).shape
    (torch.Size([2, 8]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        hidden_layer_sizes: Sequence[int] = (128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str | None = None,
        init_scale: float = 1.0,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.normalization = normalization
        layers: list[nn.Module] = []
        width = n_features
        for index, size in enumerate(hidden_layer_sizes):
            # skip_init: torch's own initialisation draws from the global generator.
            layers.append(skip_init(nn.Linear, width, size))
            if normalization is not None:
                layers.append(NORMALIZATIONS[normalization](size))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0.0:
                seed = None if random_state is None else random_state + index + 1
                layers.append(Dropout(dropout, seed))
            width = size
        self.body = nn.Sequential(*layers)
        self.output = skip_init(nn.Linear, width, n_classes)

        generator = None
        if random_state is not None:
            generator = torch.Generator().manual_seed(random_state)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                gain = "linear" if module is self.output else _GAIN.get(activation)
                nn.init.kaiming_uniform_(
                    module.weight,
                    nonlinearity=gain or activation,  # type: ignore[arg-type]
                    generator=generator,
                )
                with torch.no_grad():
                    module.weight.mul_(init_scale)
                    # Zero: the network is then homogeneous in its weights, and
                    # init_scale acts exactly like a temperature at the start.
                    module.bias.zero_()

    def embed(self, x: Tensor) -> Tensor:
        """Return the last hidden layer (n, d) of `x` (n, n_features)."""
        return self.body(x)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        return self.output(z)
