"""The multi-layer perceptron as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from sksoftrank.estimators._categories import (
    CategoricalInputClassifier,
    CategoryEncoder,
    OneHotCategories,
)
from sksoftrank.estimators._docs import document_shared
from sksoftrank.losses import TemperatureSchedule
from sksoftrank.modules import MLP, EmbedHeadModule
from sksoftrank.modules._layers import ACTIVATIONS
from sksoftrank.modules._mlp import NORMALIZATIONS


@document_shared()
class SoftRankMLPClassifier(CategoricalInputClassifier):
    """Multi-layer perceptron whose softmax temperature sets the rank of its embedding.

    Trained with ``cross_entropy(logits / temperature, y)``. A high temperature gives
    embeddings of low rank, that compress to a few columns; a low one keeps many
    directions. `predict` classifies, `transform` yields the compressed embedding.

    `X` is a matrix, or a frame with columns of categories too. Numeric columns should
    be scaled.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(128, 128)
        Width of each hidden layer; the last is the width of the embedding.
    activation : {"identity", "relu", "gelu", "silu", "tanh"}, default="relu"
        Nonlinearity of the hidden layers.
    dropout : float, default=0.0
        In [0, 1). Probability that a hidden unit is zeroed in a training step.
    normalization : {None, "batch", "layer"}, default=None
        Normalisation before each activation. Weakens the temperature's effect.
    init_scale : float, default=1.0
        Positive factor on the initial weights of all layers; over L layers and without
        normalisation a scale ``a`` acts like the temperature ``a ** -L``.
    categorical_features : "from_dtype", array-like or None, default="from_dtype"
        Columns that hold categories, which the network gets as a column of zeros and
        ones for each category: those whose dtype in a pandas or polars frame is
        categorical, text or boolean; or indices, names or a mask; None for none. A
        missing value that `fit` saw is a category too.
    handle_unknown : {"infrequent_if_exist", "error"}, default="infrequent_if_exist"
        What becomes of a category, or a missing value, that `fit` did not see. With
        "infrequent_if_exist" it goes to the column that the categories share which
        `fit` saw in one row alone; it is all zeros, where there are none. "error"
        refuses it, and every category has its own column. In `partial_fit` the first
        call stands for `fit`.
    %(parameters)s

    Attributes
    ----------
    is_categorical_ : ndarray of shape (n_features_in_,) or None
        Which columns hold categories; None where none does.
    %(attributes)s

    References
    ----------
    Masarczyk et al. (2025), arXiv:2506.01562.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
    >>> clf = SoftRankMLPClassifier(temperature=10.0, random_state=0)
    >>> clf.fit(X_train, y_train).score(X_test, y_test) > 0.95
    True
    >>> clf.transform(X_test).shape[1] < clf.embed(X_test).shape[1]
    True
    """

    _parameter_constraints = {  # noqa: RUF012
        **CategoricalInputClassifier._parameter_constraints,
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "normalization": [StrOptions(set(NORMALIZATIONS)), None],
        "init_scale": [Interval(Real, 0, None, closed="neither")],
    }
    _encoding: ClassVar[type[CategoryEncoder]] = OneHotCategories

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str | None = None,
        init_scale: float = 1.0,
        categorical_features: Any = "from_dtype",
        handle_unknown: str = "infrequent_if_exist",
        temperature: float | TemperatureSchedule = 1.0,
        n_components: str | float | None = "auto",
        compression_tol: float = 0.005,
        optimizer: str = "adam",
        learning_rate: str | float = "auto",
        weight_decay: float = 0.0,
        lr_schedule: str = "cosine",
        label_smoothing: float = 0.0,
        max_grad_norm: float | None = None,
        max_epochs: int = 50,
        batch_size: int = 128,
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
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.normalization = normalization
        self.init_scale = init_scale
        self.categorical_features = categorical_features
        self.handle_unknown = handle_unknown

    def _widths(self) -> tuple[int, ...]:
        sizes: Any = self.hidden_layer_sizes
        widths: tuple[Any, ...]
        widths = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
        if not widths or not all(
            isinstance(w, Integral) and int(w) >= 1 for w in widths
        ):
            raise ValueError(
                "hidden_layer_sizes must be one or more positive integers, got "
                f"{sizes!r}. Use e.g. (128, 128)."
            )
        return tuple(int(width) for width in widths)

    def _embedding_width(self) -> int:
        return self._widths()[-1]

    def _min_batch_size(self) -> int:
        # Batch normalisation has no variance to divide by in a batch of one.
        return 2 if self.normalization == "batch" else 1

    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        return MLP, {
            "n_features": self._encoder.n_columns if self._encoder else n_features,
            "hidden_layer_sizes": self._widths(),
            "activation": self.activation,
            "dropout": self.dropout,
            "normalization": self.normalization,
            "init_scale": self.init_scale,
        }
