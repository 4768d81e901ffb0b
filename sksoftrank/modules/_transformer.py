"""The transformer, for images and for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sksoftrank.modules._layers import (
    DTYPE,
    Augmentation,
    Conv2d,
    Dropout,
    Linear,
    init_weight,
    make_generator,
)
from sksoftrank.modules._protocol import EmbedHeadModule

# Standard deviation of learned positions and embeddings, as in ViT and GPT-2.
_EMBEDDING_STD = 0.02

# Of the convolutions, over the blocks': they are normalised by batches.
_CONVOLUTION_RATE = 3.0


class _Patches(nn.Module):
    """A token for each square patch of an image, with a learned position.

    By convolutions, which learn from few images what a patch's pixels alone don't tell
    (Hassani et al. 2021, section 3.3): a stage of 3-wide convolution, maximum,
    normalisation and ReLU for each prime factor of the patch's side, which it divides.
    Each is twice as wide as the one before; the last has the width of a token.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        patch_size: int,
        d_model: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        c, h, w = input_shape
        self.n_tokens = (h // patch_size) * (w // patch_size)
        factors = _prime_factors(patch_size) or [1]
        halvings = reversed(range(len(factors)))
        widths = [c, *(max(d_model >> halving, 1) for halving in halvings)]
        self.stages = nn.Sequential()
        for factor, (width_in, width) in zip(factors, pairwise(widths), strict=True):
            # A bias would be taken out again by the normalisation.
            conv = Conv2d(width_in, width, 3, padding=1, bias=False, dtype=DTYPE)
            init_weight(conv.weight, "relu", generator)
            norm = nn.BatchNorm2d(width, dtype=DTYPE)
            self.stages.extend([conv, nn.MaxPool2d(factor), norm, nn.ReLU()])
        for layer in self.stages:
            layer.lr_scale = _CONVOLUTION_RATE  # type: ignore[assignment]
        self.positions = nn.Parameter(torch.empty(self.n_tokens, d_model, dtype=DTYPE))
        nn.init.normal_(self.positions, std=_EMBEDDING_STD, generator=generator)
        # CPUs convolve it faster.
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def no_weight_decay(self) -> set[str]:
        return {"positions"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x.contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2) + self.positions


class _Features(nn.Module):
    """A token for each column of a table (Gorishniy et al. 2021, section 3.3).

    The first columns are codes of categories, which have an embedding each; that of
    code 0, the rest, starts from zero. A numeric column scales a vector of its own. To
    each is added a vector of the column.
    """

    def __init__(
        self,
        n_features: int,
        cardinalities: Sequence[int],
        d_model: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.n_tokens = n_features
        self.n_categorical = len(cardinalities)
        offsets = torch.tensor([0, *cardinalities]).cumsum(0)
        self.register_buffer("offsets", offsets[:-1], persistent=False)

        def make(n: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(n, d_model, dtype=DTYPE))

        self.categories = make(int(offsets[-1]))
        self.slopes = make(n_features - self.n_categorical)
        self.columns = make(n_features)
        bound = 1.0 / math.sqrt(d_model)
        for parameter in (self.categories, self.slopes, self.columns):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        with torch.no_grad():
            # So that it says nothing where no row has it that is trained on.
            self.categories[offsets[:-1]] = 0.0

    def no_weight_decay(self) -> set[str]:
        # As in the authors' code.
        return {"categories", "slopes", "columns"}

    def forward(self, x: Tensor) -> Tensor:
        n = self.n_categorical
        numeric = x[:, n:, None] * self.slopes
        if n == 0:
            return numeric + self.columns
        offsets: Tensor = self.get_buffer("offsets")
        categorical = F.embedding(x[:, :n].long() + offsets, self.categories)
        return torch.cat([categorical, numeric], dim=1) + self.columns


class _Attention(nn.Module):
    """Self-attention of several heads, with a temperature."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        temperature: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.scale = 1.0 / (math.sqrt(d_model // n_heads) * temperature)
        self.qkv = _linear(d_model, 3 * d_model, "identity", generator)
        self.projection = _linear(d_model, d_model, "identity", generator)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, d = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.n_heads, d // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, t, d / heads)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.projection(y.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention weights (n, heads, t, t)."""
        q, k, _ = self._split(x)
        return torch.softmax(q @ k.transpose(2, 3) * self.scale, dim=-1)


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added after."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        mlp_ratio: float,
        dropout: float,
        attention_temperature: float,
        generator: torch.Generator | None,
        seeds: tuple[int | None, int | None],
    ) -> None:
        super().__init__()
        width = max(int(mlp_ratio * d_model), 1)
        self.norm_attention = nn.LayerNorm(d_model, dtype=DTYPE)
        self.attention = _Attention(d_model, n_heads, attention_temperature, generator)
        self.norm_mlp = nn.LayerNorm(d_model, dtype=DTYPE)
        self.mlp = nn.Sequential(
            _linear(d_model, width, "gelu", generator),
            nn.GELU(),
            _linear(width, d_model, "identity", generator),
        )
        self.dropout_attention = Dropout(dropout, seeds[0])
        self.dropout_mlp = Dropout(dropout, seeds[1])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout_attention(self.attention(self.norm_attention(x)))
        return x + self.dropout_mlp(self.mlp(self.norm_mlp(x)))


class Transformer(EmbedHeadModule):
    """Pre-norm transformer over the patches of an image or the columns of a table.

    The embedding is the normalised mean over all tokens.

    Parameters
    ----------
    input_shape : tuple of int
        Of one row: (c, h, w) for images, (n_features,) for tables, whose categorical
        columns come first.
    n_classes : int
        Width of the output.
    patch_size : int, default=4
        Side of an image's patches; both sides of the image must be multiples of it.
    cardinalities : sequence of int, default=()
        Number of codes of each categorical column of a table, the rest's 0 included.
    d_model : int, default=64
        Width of a token, and of the embedding; a multiple of `n_heads`.
    n_heads : int, default=4
        Heads of the attention.
    depth : int, default=4
        Blocks.
    mlp_ratio : float, default=2.0
        Width of a block's perceptron over `d_model`.
    dropout : float, default=0.0
        In [0, 1). Probability that a unit is zeroed where a block adds to its input.
    attention_temperature : float, default=1.0
        Positive. Divides the scores in the softmax of the attention.
    augmentation : sequence of {"flip", "shift", "cutout"}, default=()
        Changes of images in training, see :class:`sksoftrank.modules.Augmentation`.
    random_state : int, default=None
        Seed of the initial weights, of dropout and of the augmentation. None draws
        from torch's global generator.

    References
    ----------
    Dosovitskiy et al. (2021), arXiv:2010.11929; Hassani et al. (2021),
    arXiv:2104.05704; Gorishniy et al. (2021), arXiv:2106.11959.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.modules import Transformer
    >>> module = Transformer((3, 8, 8), 10, patch_size=4, random_state=0)
    >>> module.embed(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 64])
    >>> [weights.shape for weights in module.attention(torch.zeros(2, 3, 8, 8))][:1]
    [torch.Size([2, 4, 4, 4])]
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_classes: int,
        patch_size: int = 4,
        cardinalities: Sequence[int] = (),
        d_model: int = 64,
        n_heads: int = 4,
        depth: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        attention_temperature: float = 1.0,
        augmentation: Sequence[str] = (),
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        generator = make_generator(random_state)

        def seed(index: int) -> int | None:
            return None if random_state is None else random_state + index

        self.augmentation: nn.Module = nn.Identity()
        if augmentation:
            self.augmentation = Augmentation(augmentation, seed(1))
        self.tokens: _Patches | _Features
        if len(self.input_shape) == 3:
            self.tokens = _Patches(self.input_shape, patch_size, d_model, generator)
        else:
            (n_features,) = self.input_shape
            self.tokens = _Features(n_features, cardinalities, d_model, generator)
        self.blocks = nn.ModuleList(
            _Block(
                d_model,
                n_heads,
                mlp_ratio,
                dropout,
                attention_temperature,
                generator,
                (seed(2 * index + 2), seed(2 * index + 3)),
            )
            for index in range(depth)
        )
        self.embedding_width = d_model
        self.norm = nn.LayerNorm(d_model, dtype=DTYPE)
        self.output = _linear(d_model, n_classes, "identity", generator)

    def _tokenize(self, x: Tensor) -> Tensor:
        return self.tokens(self.augmentation(x.reshape(-1, *self.input_shape)))

    def embed(self, x: Tensor) -> Tensor:
        """Return the normalised mean over tokens (n, d) of `x` (n, ...)."""
        tokens = self._tokenize(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens.mean(dim=1))

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        return self.output(z)

    def attention(self, x: Tensor) -> list[Tensor]:
        """Return each block's attention weights (n, heads, t, t) of `x` (n, ...)."""
        tokens = self._tokenize(x)
        weights: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, _Block)
            weights.append(block.attention.weights(block.norm_attention(tokens)))
            tokens = block(tokens)
        return weights


def _linear(
    width_in: int, width_out: int, activation: str, generator: torch.Generator | None
) -> nn.Linear:
    layer = Linear(width_in, width_out, dtype=DTYPE)
    init_weight(layer.weight, activation, generator)
    nn.init.zeros_(layer.bias)
    return layer


def _prime_factors(number: int) -> list[int]:
    factor, found = 2, []
    while number > 1:
        if number % factor:
            factor += 1
        else:
            found.append(factor)
            number //= factor
    return found
