"""The transformer as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval

from sksoftrank.estimators._categories import (
    CategoricalInputClassifier,
    CategoryEncoder,
)
from sksoftrank.estimators._docs import document_shared
from sksoftrank.estimators._shapes import (
    ShapedInputClassifier,
    as_shape,
    warn_channels_last,
)
from sksoftrank.losses import TemperatureSchedule
from sksoftrank.modules import EmbedHeadModule, Transformer
from sksoftrank.modules._layers import check_augmentation


@document_shared(
    optimizer="adamw",
    weight_decay="0.1",
    base_rate="0.003",
    lr_schedule="warmup_cosine",
    max_grad_norm="1.0",
)
class SoftRankTransformerClassifier(CategoricalInputClassifier, ShapedInputClassifier):
    """Transformer whose softmax temperature sets the rank of its embedding.

    For images (a token for each patch) and tables (a token for each column). Trained
    with ``cross_entropy(logits / temperature, y)``: a high temperature gives embeddings
    of low rank, that compress to a few columns.

    `X` holds images (n, channels, height, width), or their flattened rows with
    `input_shape`, or it is a table. Numeric columns should be scaled.

    Parameters
    ----------
    d_model : int, default=64
        Width of a token, and of the embedding; a multiple of `n_heads`.
    n_heads : int, default=4
        Heads of the attention.
    depth : int, default=3
        Blocks of attention and a two-layer perceptron, normalised before each.
    mlp_ratio : float, default=2.0
        Width of a block's perceptron over `d_model`.
    patch_size : int, default=4
        Side of an image's patches. Both sides of an image must be multiples of it.
        Tables have none.
    input_shape : tuple of int, default=None
        Of one image: (channels, height, width). None takes it from `X`.
    categorical_features : "from_dtype", array-like or None, default="from_dtype"
        Columns that hold categories, which get a learned vector each: those whose dtype
        in a pandas or polars frame is categorical, text or boolean; or indices, names
        or a mask; None for none. A missing value that `fit` saw is a category too.
    handle_unknown : {"infrequent_if_exist", "error"}, default="infrequent_if_exist"
        What becomes of a category, or a missing value, that `fit` did not see. With
        "infrequent_if_exist" it gets the vector that the categories of its column share
        which `fit` saw in one row alone; zero, where there are none. "error" refuses
        it, and every category has its own vector. In `partial_fit` the first call
        stands for `fit`.
    attention_temperature : float, default=1.0
        Positive. Divides the scores in the softmax of the attention.
    dropout : float, default=0.1
        In [0, 1). Probability that a unit is zeroed, where a block adds to its input,
        in a training step.
    augmentation : sequence of {"flip", "shift", "cutout"}, default=()
        Changes of each image, drawn anew in every training step: mirrored left to
        right, moved by up to an eighth of its sides, a box of a quarter of the sides
        set to zero.
    %(parameters)s

    Attributes
    ----------
    input_shape_ : tuple of int
        Of one row: that of an image, or the number of columns.
    is_categorical_ : ndarray of shape (n_features_in_,) or None
        Which columns hold categories; None where none does.
    %(attributes)s

    References
    ----------
    Dosovitskiy et al. (2021), arXiv:2010.11929; Gorishniy et al. (2021),
    arXiv:2106.11959; Masarczyk et al. (2025), arXiv:2506.01562.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.preprocessing import scale
    >>> from sksoftrank import SoftRankTransformerClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankTransformerClassifier(
    ...     16, depth=1, batch_size=16, max_epochs=15, random_state=0
    ... )
    >>> clf.fit(scale(X), y).score(scale(X), y) > 0.9
    True
    """

    _parameter_constraints = {  # noqa: RUF012
        **CategoricalInputClassifier._parameter_constraints,
        "d_model": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 1, None, closed="left")],
        "mlp_ratio": [Interval(Real, 0, None, closed="neither")],
        "patch_size": [Interval(Integral, 1, None, closed="left")],
        "input_shape": ["array-like", None],
        "attention_temperature": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "augmentation": ["array-like"],
    }
    _base_rates = {"adam": 3e-3, "adamw": 3e-3, "sgd": 5e-2}  # noqa: RUF012
    # Their activations are many times as large as an MLP's.
    _inference_rows = 256

    def __init__(
        self,
        d_model: int = 64,
        *,
        n_heads: int = 4,
        depth: int = 3,
        mlp_ratio: float = 2.0,
        patch_size: int = 4,
        input_shape: Sequence[int] | None = None,
        categorical_features: Any = "from_dtype",
        handle_unknown: str = "infrequent_if_exist",
        attention_temperature: float = 1.0,
        dropout: float = 0.1,
        augmentation: Sequence[str] = (),
        temperature: float | TemperatureSchedule = 1.0,
        n_components: str | float | None = "auto",
        compression_tol: float = 0.005,
        optimizer: str = "adamw",
        learning_rate: str | float = "auto",
        weight_decay: float = 0.1,
        lr_schedule: str = "warmup_cosine",
        label_smoothing: float = 0.0,
        max_grad_norm: float | None = 1.0,
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
        self.d_model = d_model
        self.n_heads = n_heads
        self.depth = depth
        self.mlp_ratio = mlp_ratio
        self.patch_size = patch_size
        self.input_shape = input_shape
        self.categorical_features = categorical_features
        self.handle_unknown = handle_unknown
        self.attention_temperature = attention_temperature
        self.dropout = dropout
        self.augmentation = augmentation

    def _embedding_width(self) -> int:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be a multiple of n_heads={self.n_heads}, got "
                f"{self.d_model}. Change one of them."
            )
        return self.d_model

    def _given_shape(self) -> tuple[int, ...] | None:
        shape = as_shape(self.input_shape)
        if shape is not None and len(shape) != 3:
            raise ValueError(
                f"input_shape must be (channels, height, width), got {shape}. Leave it "
                "out for a table, whose columns are the tokens."
            )
        return shape

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 1:
            if len(self.augmentation):
                raise ValueError(
                    f"augmentation must be empty for a table, got {self.augmentation!r}"
                    ". Leave it out, or pass images."
                )
            return
        if len(shape) != 3:
            raise ValueError(
                "X must hold images (n, channels, height, width) or be a table, got "
                f"rows of shape {shape}. Reshape X."
            )
        if self.input_shape is None:
            warn_channels_last(shape)
        if any(side % self.patch_size for side in shape[1:]):
            fitting = [
                p
                for p in range(1, min(shape[1:]) + 1)
                if not any(s % p for s in shape[1:])
            ]
            raise ValueError(
                f"patch_size must divide both sides of images of shape {shape}, got "
                f"{self.patch_size}. Use one of {fitting}, or crop or pad the images."
            )

    def _validate(self, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        checked = super()._validate(X, y, **options)
        if options["reset"] and self._encoder is not None:
            self._set_shape(None)
        return checked

    def _find_categories(self, X: Any) -> CategoryEncoder | None:
        if getattr(X, "ndim", 2) <= 2 and self.input_shape is None:
            return super()._find_categories(X)
        if self._names_categories:
            raise ValueError(
                "categorical_features must be 'from_dtype' or None for images, got "
                f"{self.categorical_features!r}. Leave it out, or leave out input_shape"
                " and pass a table."
            )
        return None

    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        return Transformer, {
            "input_shape": self.input_shape_,
            "patch_size": self.patch_size,
            "cardinalities": self._encoder.cardinalities if self._encoder else (),
            "d_model": self._embedding_width(),
            "n_heads": self.n_heads,
            "depth": self.depth,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "attention_temperature": self.attention_temperature,
            "augmentation": check_augmentation(self.augmentation),
        }
