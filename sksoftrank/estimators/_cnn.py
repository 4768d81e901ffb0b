"""The convolutional network as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import ClassVar, Unpack

from sksoftrank._checks import as_tuple
from sksoftrank._sklearn import Interval, StrOptions
from sksoftrank.estimators._architecture import Architecture
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._input import InputReader, as_shape
from sksoftrank.estimators._parameters import CNN_RATES, RECIPE, SharedParameters
from sksoftrank.modules import CNN
from sksoftrank.modules._cnn import CNN_NORMALIZATIONS
from sksoftrank.modules._layers import ACTIVATIONS, check_augmentation


class SoftRankCNNClassifier(BaseSoftRankClassifier):
    """Convolutional network whose softmax temperature sets the rank of its embedding.

    For images and signals. Trained with ``cross_entropy(logits / temperature, y)``: a
    high temperature gives embeddings of low rank, that compress to a few columns.

    `X` holds images (n, channels, height, width) or signals (n, channels, length), or
    their flattened rows with `input_shape`. A matrix without it holds one-channel
    signals as long as it has columns.

    Parameters
    ----------
    channels : sequence of int, default=(32, 64, 128)
        Width of each stage of two convolutions, the first of which halves the sides;
        the last is the width of the embedding.
    input_shape : tuple of int, default=None
        Of one row: (channels, height, width) or (channels, length). None takes it from
        `X`.
    activation : {"identity", "relu", "gelu", "silu", "tanh"}, default="relu"
        Nonlinearity after each convolution.
    normalization : {"batch", "group", None}, default="batch"
        Normalisation before each activation. Weakens the temperature's effect.
    residual : bool, default=True
        Whether a stage's second convolution is added to its input.
    whitening : bool, default=True
        Whether what the first stage gets are the uncorrelated parts of 2-wide patches,
        as the first batch of the training has them; those with at most 32 numbers.
    dropout : float, default=0.0
        In [0, 1). Probability that a unit of the embedding is zeroed, on its way to the
        head, in a training step.
    augmentation : sequence of {"flip", "shift", "cutout"}, default=()
        Changes of each image, drawn anew in every training step: mirrored left to
        right, moved by up to an eighth of its sides, a box of a quarter of the sides
        set to zero.
    %(parameters)s

    Attributes
    ----------
    input_shape_ : tuple of int
        Of one row.
    %(attributes)s

    References
    ----------
    Simonyan and Zisserman (2015), arXiv:1409.1556; He et al. (2016), arXiv:1512.03385;
    Jordan (2024), arXiv:2404.00498; Masarczyk et al. (2025), arXiv:2506.01562.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sksoftrank import SoftRankCNNClassifier
    >>> digits = load_digits()
    >>> X, y = digits.images[:, None] / 16, digits.target  # X: (n, 1, 8, 8)
    >>> clf = SoftRankCNNClassifier(
    ...     (16, 32), batch_size=32, max_epochs=5, random_state=0
    ... )
    >>> clf.fit(X[:1000], y[:1000]).score(X[1000:], y[1000:]) > 0.9
    True
    """

    _parameter_constraints = {  # noqa: RUF012
        **BaseSoftRankClassifier._parameter_constraints,
        "channels": ["array-like"],
        "input_shape": ["array-like", None],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "normalization": [StrOptions(set(CNN_NORMALIZATIONS)), None],
        "residual": ["boolean"],
        "whitening": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "augmentation": ["array-like"],
    }
    # Of images small batches make more: 256 rows a step, as of tables, cost 2 points.
    _shared_defaults: ClassVar[SharedParameters] = {
        **RECIPE,
        "max_epochs": 35,
        "batch_size": 64,
    }

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        *,
        input_shape: Sequence[int] | None = None,
        activation: str = "relu",
        normalization: str | None = "batch",
        residual: bool = True,
        whitening: bool = True,
        dropout: float = 0.0,
        augmentation: Sequence[str] = (),
        **shared: Unpack[SharedParameters],
    ) -> None:
        super().__init__(**shared)
        self.channels = channels
        self.input_shape = input_shape
        self.activation = activation
        self.normalization = normalization
        self.residual = residual
        self.whitening = whitening
        self.dropout = dropout
        self.augmentation = augmentation

    def _architecture(self) -> Architecture:
        channels = as_tuple(self.channels)
        if not channels or not all(
            isinstance(c, Integral) and int(c) >= 1 for c in channels
        ):
            raise ValueError(
                "channels must be one or more positive integers, got "
                f"{self.channels!r}. Use e.g. (32, 64, 128)."
            )
        return Architecture(
            CNN,
            {
                "channels": tuple(int(width) for width in channels),
                "activation": self.activation,
                "normalization": self.normalization,
                "residual": self.residual,
                "whitening": self.whitening,
                "dropout": self.dropout,
                "augmentation": check_augmentation(self.augmentation),
            },
            ("input_shape",),
            InputReader(axes=(2, 3), given_shape=as_shape(self.input_shape, (2, 3))),
            embedding_width=int(channels[-1]),
            base_rates=CNN_RATES,
        )
