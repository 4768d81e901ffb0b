"""The transformer as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Unpack

from sksoftrank._sklearn import Interval
from sksoftrank.estimators._architecture import Architecture
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._categories import CategoryEncoder
from sksoftrank.estimators._input import CATEGORY_CONSTRAINTS, InputReader, as_shape
from sksoftrank.estimators._parameters import (
    RECIPE,
    TRANSFORMER_RATES,
    SharedParameters,
)
from sksoftrank.modules import Transformer
from sksoftrank.modules._layers import check_augmentation


class SoftRankTransformerClassifier(BaseSoftRankClassifier):
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
    depth : int, default=2
        Blocks of attention and a two-layer perceptron, normalised before each.
    mlp_ratio : float, default=2.0
        Width of a block's perceptron over `d_model`.
    patch_size : int, default=4
        Side of an image's patches, of which convolutions and maxima make tokens. Both
        sides of an image must be multiples of it. Tables have none.
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
    Dosovitskiy et al. (2021), arXiv:2010.11929; Hassani et al. (2021),
    arXiv:2104.05704; Gorishniy et al. (2021), arXiv:2106.11959; Masarczyk et al.
    (2025), arXiv:2506.01562.

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
        **BaseSoftRankClassifier._parameter_constraints,
        **CATEGORY_CONSTRAINTS,
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
    _shared_defaults: ClassVar[SharedParameters] = {
        **RECIPE,
        "lr_schedule": "warmup_cosine",
    }

    def __init__(
        self,
        d_model: int = 64,
        *,
        n_heads: int = 4,
        depth: int = 2,
        mlp_ratio: float = 2.0,
        patch_size: int = 4,
        input_shape: Sequence[int] | None = None,
        categorical_features: Any = "from_dtype",
        handle_unknown: str = "infrequent_if_exist",
        attention_temperature: float = 1.0,
        dropout: float = 0.1,
        augmentation: Sequence[str] = (),
        **shared: Unpack[SharedParameters],
    ) -> None:
        super().__init__(**shared)
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

    def _architecture(self) -> Architecture:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be a multiple of n_heads={self.n_heads}, got "
                f"{self.d_model}. Change one of them."
            )
        augmentation = check_augmentation(self.augmentation)
        return Architecture(
            Transformer,
            {
                "patch_size": self.patch_size,
                "d_model": self.d_model,
                "n_heads": self.n_heads,
                "depth": self.depth,
                "mlp_ratio": self.mlp_ratio,
                "dropout": self.dropout,
                "attention_temperature": self.attention_temperature,
                "augmentation": augmentation,
            },
            ("input_shape", "cardinalities"),
            InputReader(
                axes=(1, 3),
                given_shape=as_shape(self.input_shape, (3,)),
                check_shape=partial(check_patches, self.patch_size, augmentation),
                encoder_class=CategoryEncoder,
                categorical_features=self.categorical_features,
                handle_unknown=self.handle_unknown,
            ),
            embedding_width=self.d_model,
            base_rates=TRANSFORMER_RATES,
        )


def check_patches(
    patch_size: int, augmentation: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    """Refuse rows that can't be cut into patches, or augmented."""
    if len(shape) == 1 and augmentation:
        raise ValueError(
            f"augmentation must be empty for a table, got {augmentation!r}. Leave it "
            "out, or pass images."
        )
    sides = shape[1:]
    if any(side % patch_size for side in sides):
        fitting = [p for p in range(1, min(sides) + 1) if not any(s % p for s in sides)]
        raise ValueError(
            f"patch_size must divide both sides of images of shape {shape}, got "
            f"{patch_size}. Use one of {fitting}, or crop or pad the images."
        )
