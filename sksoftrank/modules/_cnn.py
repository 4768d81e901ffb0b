"""The convolutional network, for images and for signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sksoftrank.modules._layers import (
    ACTIVATIONS,
    DTYPE,
    Augmentation,
    Conv1d,
    Conv2d,
    Dropout,
    Linear,
    init_weight,
    make_generator,
)
from sksoftrank.modules._protocol import EmbedHeadModule

CNN_NORMALIZATIONS = ("batch", "group")
# Numbers of a patch that is whitened, at most: its filters are twice as many.
_PATCH_NUMBERS = 32
# Patches that tell their covariance.
_N_PATCHES = 2**16
# Added to each variance, of their mean: what hardly varies is noise.
_NOISE_SHARE = 1e-2
# Of a group: few enough to keep statistics apart, enough to have some.
_GROUP_CHANNELS = 16


class _GroupNorm(nn.GroupNorm):
    """Group normalisation that takes a single number too, and gives its bias."""

    def forward(self, x: Tensor) -> Tensor:
        # nn.GroupNorm refuses it, even in evaluation.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _Whitening(nn.Module):
    """Uncorrelated parts of 2-wide patches, each of unit variance and with both signs.

    A convolution that isn't trained: its filters are the eigenvectors of the patches'
    covariance in the first batch of a training. Until then they are the patch's
    numbers. Neighbouring pixels are so alike that what follows would be long in
    learning what tells them apart (Jordan 2024, section 3.2).
    """

    weight: Tensor
    bias: Tensor
    is_set: Tensor

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        c, *sides = input_shape
        self.kernel = tuple(min(side, 2) for side in sides)
        eye = torch.eye(c * math.prod(self.kernel), dtype=DTYPE)
        weight = torch.cat([eye, -eye]).view(-1, c, *self.kernel)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(len(weight), dtype=DTYPE))
        self.register_buffer("is_set", torch.tensor(False))
        self._is_known = False  # Without a look at a tensor, where it may lie.

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self._is_known:
            if not self.is_set:
                self._find(x.detach())
            self._is_known = True
        conv = F.conv2d if x.ndim == 4 else F.conv1d
        return conv(x, self.weight, self.bias)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_known = False

    def _find(self, x: Tensor) -> None:
        """Set the filters from images (n, c, ...)."""
        n_places = math.prod(x.shape[2:])
        patches = x[: max(_N_PATCHES // n_places, 1)].cpu().double()
        for axis, width in enumerate(self.kernel, start=2):
            patches = patches.unfold(axis, width, 1)
        numbers = x.ndim - 1  # The axis where those of a patch begin.
        patches = patches.movedim(1, numbers).flatten(numbers).flatten(0, -2)
        mean = patches.mean(dim=0)
        patches -= mean
        variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        noise = (_NOISE_SHARE * variances.mean()).clamp_min(1e-12)
        filters = (vectors / (variances.clamp_min(0) + noise).sqrt()).T
        filters = torch.cat([filters, -filters])
        with torch.no_grad():
            self.weight.copy_(filters.view(self.weight.shape))
            self.bias.copy_(-filters @ mean)
            self.is_set.fill_(True)


class _ConvBlock(nn.Module):
    """Convolution, maximum, normalisation, activation; at will added to its input."""

    def __init__(
        self,
        n_dims: int,
        width_in: int,
        width_out: int,
        activation: str,
        normalization: str | None,
        pooling: tuple[int, ...],
        residual: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        conv: Any = Conv2d if n_dims == 2 else Conv1d
        # A bias would be taken out again by the normalisation.
        bias = normalization is None
        self.conv = conv(width_in, width_out, 3, padding=1, bias=bias, dtype=DTYPE)
        init_weight(self.conv.weight, activation, generator)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.pool: nn.Module = nn.Identity()
        if max(pooling) > 1:
            max_pool: Any = nn.MaxPool2d if n_dims == 2 else nn.MaxPool1d
            self.pool = max_pool(pooling)
        self.norm: nn.Module = nn.Identity()
        if normalization == "batch":
            batch_norm = nn.BatchNorm2d if n_dims == 2 else nn.BatchNorm1d
            self.norm = batch_norm(width_out, dtype=DTYPE)
        elif normalization == "group":
            n_groups = max(width_out // _GROUP_CHANNELS, 1)
            while width_out % n_groups:
                n_groups -= 1
            self.norm = _GroupNorm(n_groups, width_out, dtype=DTYPE)
        self.activation = ACTIVATIONS[activation]()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.norm(self.pool(self.conv(x))))
        return x + y if self.residual else y


class CNN(EmbedHeadModule):
    """Convolutional network: stages of two 3-wide convolutions, then a global mean.

    A stage's first convolution sets the width and halves the sides by a maximum, as
    long as there is something to halve; its second keeps both. The mean over all places
    is the embedding. Images are kept channels-last in memory, which CPUs
    convolve faster.

    Parameters
    ----------
    input_shape : tuple of int
        Of one row: (c, h, w) for images, (c, l) for signals.
    n_classes : int
        Width of the output.
    channels : sequence of int, default=(32, 64, 128)
        Width of each stage; the last is the width of the embedding.
    activation : {"identity", "relu", "gelu", "silu", "tanh"}, default="relu"
        Nonlinearity after each convolution.
    normalization : {"batch", "group", None}, default="batch"
        Normalisation before each activation.
    residual : bool, default=True
        Whether a stage's second convolution is added to its input (He et al. 2016).
    whitening : bool, default=True
        Whether what the first stage gets are the uncorrelated parts of 2-wide patches,
        as the first batch of a training has them; those with at most 32 numbers.
    dropout : float, default=0.0
        In [0, 1). Probability that a unit of the embedding is zeroed in a training
        step, on its way to the head.
    augmentation : sequence of {"flip", "shift", "cutout"}, default=()
        Changes of the images in training, see
        :class:`sksoftrank.modules.Augmentation`.
    random_state : int, default=None
        Seed of the initial weights, of dropout and of the augmentation. None draws
        from torch's global generator.

    References
    ----------
    Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.modules import CNN
    >>> module = CNN((3, 8, 8), 10, channels=(8, 16), random_state=0)
    >>> module.embed(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_classes: int,
        channels: Sequence[int] = (32, 64, 128),
        activation: str = "relu",
        normalization: str | None = "batch",
        residual: bool = True,
        whitening: bool = True,
        dropout: float = 0.0,
        augmentation: Sequence[str] = (),
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        n_dims = len(self.input_shape) - 1
        generator = make_generator(random_state)
        seeds = [None if random_state is None else random_state + i for i in (1, 2)]
        self.augmentation: nn.Module = nn.Identity()
        if augmentation:
            self.augmentation = Augmentation(augmentation, seeds[0])
        n_channels, *sides = self.input_shape
        self.whitening: nn.Module = nn.Identity()
        patches = _Whitening(self.input_shape)
        if whitening and len(patches.weight) <= 2 * _PATCH_NUMBERS:
            self.whitening = nn.Sequential(patches, ACTIVATIONS[activation]())
            n_channels = len(patches.weight)
            kernel = patches.kernel
            sides = [side - k + 1 for side, k in zip(sides, kernel, strict=True)]
        self.stages = nn.Sequential()
        for width_in, width in pairwise((n_channels, *channels)):
            # A side of one has nothing to halve.
            halved = tuple(min(side, 2) for side in sides)
            sides = [side // p for side, p in zip(sides, halved, strict=True)]
            kept = (1,) * n_dims
            self.stages.append(
                nn.Sequential(
                    *(
                        _ConvBlock(
                            n_dims,
                            first,
                            width,
                            activation,
                            normalization,
                            pooling,
                            residual and pooling is kept,
                            generator,
                        )
                        for first, pooling in ((width_in, halved), (width, kept))
                    )
                )
            )
        self.dropout: nn.Module = nn.Identity()
        if dropout > 0.0:
            self.dropout = Dropout(dropout, seeds[1])
        self.embedding_width = channels[-1]
        self.output = Linear(channels[-1], n_classes, dtype=DTYPE)
        init_weight(self.output.weight, "identity", generator)
        nn.init.zeros_(self.output.bias)
        self.is_image = n_dims == 2
        self.memory_format = torch.contiguous_format
        if self.is_image:
            self.memory_format = torch.channels_last
            self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def embed(self, x: Tensor) -> Tensor:
        """Return the mean over all places (n, d) of `x` (n, c, ...) or (n, c * ...)."""
        x = self.augmentation(x.reshape(-1, *self.input_shape))
        x = x.contiguous(memory_format=self.memory_format)
        x = self.stages(self.whitening(x))
        return x.flatten(2).mean(dim=2)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits (n, n_classes) of the representation `z` (n, d)."""
        return self.output(self.dropout(z))
