"""The multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sksoftrank.modules._layers import (
    ACTIVATIONS,
    DTYPE,
    Dropout,
    InputScale,
    Linear,
    init_weight,
    make_generator,
)
from sksoftrank.modules._protocol import EmbedHeadModule

NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
}


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
    input_scale : bool, default=False
        Whether each feature has a learned factor, before the first layer.
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
        input_scale: bool = False,
        init_scale: float = 1.0,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.normalization = normalization
        layers: list[nn.Module] = [InputScale(n_features)] if input_scale else []
        width = n_features
        for index, size in enumerate(hidden_layer_sizes):
            # A normalisation takes a bias out again: what training made of it would be
            # the roundings of a gradient of zero.
            bias = normalization is None
            layers.append(Linear(width, size, bias=bias, dtype=DTYPE))
            if normalization is not None:
                layers.append(NORMALIZATIONS[normalization](size, dtype=DTYPE))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0.0:
                seed = None if random_state is None else random_state + index + 1
                layers.append(Dropout(dropout, seed))
            width = size
        self.body = nn.Sequential(*layers)
        self.output = Linear(width, n_classes, dtype=DTYPE)
        self.embedding_width = width

        generator = make_generator(random_state)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                is_output = module is self.output
                init_weight(
                    module.weight, "identity" if is_output else activation, generator
                )
                with torch.no_grad():
                    module.weight.mul_(init_scale)
                    if module.bias is not None:
                        # Zero: the network is then homogeneous in its weights, and
                        # init_scale acts exactly like a temperature at the start.
                        module.bias.zero_()

    def embed(self, x: Tensor) -> Tensor:
        """Return the last hidden layer (n, d) of `x` (n, n_features)."""
        return self.body(x)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        return self.output(z)

    def scale_logits(self, factor: float) -> None:
        """Multiply the logits: neither the representation nor any class changes.

        Parameters
        ----------
        factor : float
            Positive; above 1 makes the probabilities surer.
        """
        with torch.no_grad():
            for parameter in self.output.parameters():
                parameter.mul_(factor)
