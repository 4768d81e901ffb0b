"""The convolutional network as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._docs import document_shared
from sksoftrank.estimators._shapes import (
    ShapedInputClassifier,
    as_shape,
    warn_channels_last,
)
from sksoftrank.losses import TemperatureSchedule
from sksoftrank.modules import CNN, EmbedHeadModule
from sksoftrank.modules._cnn import CNN_NORMALIZATIONS
from sksoftrank.modules._layers import ACTIVATIONS, check_augmentation


@document_shared(
    optimizer="adamw", weight_decay="0.05", base_rate="0.003", batch_size="32"
)
class SoftRankCNNClassifier(ShapedInputClassifier):
    """Convolutional network whose softmax temperature sets the rank of its embedding.

    For images and signals. Trained with ``cross_entropy(logits / temperature, y)``: a
    high temperature gives embeddings of low rank, that compress to a few columns.

    `X` holds images (n, channels, height, width) or signals (n, channels, length), or
    their flattened rows with `input_shape`. A matrix without it holds one-channel
    signals as long as it has columns.

    Parameters
    ----------
    channels : sequence of int, default=(32, 64, 128)
        Width of each stage of two convolutions; the last is the width of the
        embedding. Between stages the sides are halved.
    input_shape : tuple of int, default=None
        Of one row: (channels, height, width) or (channels, length). None takes it from
        `X`.
    activation : {"identity", "relu", "gelu", "silu", "tanh"}, default="relu"
        Nonlinearity after each convolution.
    normalization : {"batch", "group", None}, default="batch"
        Normalisation before each activation. Weakens the temperature's effect.
    residual : bool, default=True
        Whether a stage's second convolution is added to its input.
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
    Masarczyk et al. (2025), arXiv:2506.01562.

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
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "augmentation": ["array-like"],
    }
    _base_rates = {"adam": 3e-3, "adamw": 3e-3, "sgd": 5e-2}  # noqa: RUF012
    # Their activations are many times as large as a table's.
    _inference_rows = 256

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        *,
        input_shape: Sequence[int] | None = None,
        activation: str = "relu",
        normalization: str | None = "batch",
        residual: bool = True,
        dropout: float = 0.0,
        augmentation: Sequence[str] = (),
        temperature: float | TemperatureSchedule = 1.0,
        n_components: str | float | None = "auto",
        compression_tol: float = 0.005,
        optimizer: str = "adamw",
        learning_rate: str | float = "auto",
        weight_decay: float = 0.05,
        lr_schedule: str = "cosine",
        label_smoothing: float = 0.0,
        max_grad_norm: float | None = None,
        max_epochs: int = 50,
        batch_size: int = 32,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        class_weight: dict[Any, float] | str | None = None,
        warm_start: bool = False,
        callbacks: list[Any] | None = None,
        net_params: dict[str, Any] | None = None,
        device: str | int | torch.device = "auto",
        precision: str = "float32",
        compile: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            temperature=temperature,
            n_components=n_components,
            compression_tol=compression_tol,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            label_smoothing=label_smoothing,
            max_grad_norm=max_grad_norm,
            max_epochs=max_epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            class_weight=class_weight,
            warm_start=warm_start,
            callbacks=callbacks,
            net_params=net_params,
            device=device,
            precision=precision,
            compile=compile,
            random_state=random_state,
            verbose=verbose,
        )
        self.channels = channels
        self.input_shape = input_shape
        self.activation = activation
        self.normalization = normalization
        self.residual = residual
        self.dropout = dropout
        self.augmentation = augmentation

    def _channels(self) -> tuple[int, ...]:
        channels = tuple(self.channels)
        if not channels or not all(
            isinstance(c, Integral) and c >= 1 for c in channels
        ):
            raise ValueError(
                "channels must be one or more positive integers, got "
                f"{self.channels!r}. Use e.g. (32, 64, 128)."
            )
        return tuple(int(width) for width in channels)

    def _embedding_width(self) -> int:
        return self._channels()[-1]

    def _given_shape(self) -> tuple[int, ...] | None:
        return as_shape(self.input_shape)

    def _default_shape(self, n_features: int) -> tuple[int, ...]:
        # Never a guessed square: columns are a signal.
        return (1, n_features)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in (2, 3):
            raise ValueError(
                "X must hold images (n, channels, height, width) or signals (n, "
                f"channels, length), got rows of shape {shape}. Reshape X."
            )
        if self.input_shape is None:
            warn_channels_last(shape)

    def _min_batch_size(self) -> int:
        # Batch normalisation has no variance to divide by in a batch of one.
        return 2 if self.normalization == "batch" else 1

    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        return CNN, {
            "input_shape": self.input_shape_,
            "channels": self._channels(),
            "activation": self.activation,
            "normalization": self.normalization,
            "residual": self.residual,
            "dropout": self.dropout,
            "augmentation": check_augmentation(self.augmentation),
        }
