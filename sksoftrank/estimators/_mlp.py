"""The multi-layer perceptron as an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Unpack

from sksoftrank._checks import as_tuple
from sksoftrank._sklearn import Interval, StrOptions
from sksoftrank.estimators._architecture import Architecture
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._categories import OneHotCategories
from sksoftrank.estimators._input import CATEGORY_CONSTRAINTS, InputReader
from sksoftrank.estimators._parameters import MLP_RATES, RECIPE, SharedParameters
from sksoftrank.modules import MLP
from sksoftrank.modules._layers import ACTIVATIONS
from sksoftrank.modules._mlp import NORMALIZATIONS

# The activations of so many rows stay in the cache.
INFERENCE_ROWS = 2048


class SoftRankMLPClassifier(BaseSoftRankClassifier):
    """Multi-layer perceptron whose softmax temperature sets the rank of its embedding.

    Trained with ``cross_entropy(logits / temperature, y)``. A high temperature gives
    embeddings of low rank, that compress to a few columns; a low one keeps many
    directions. `predict` classifies, `transform` yields the compressed embedding.

    `X` is a matrix, or a frame with columns of categories too. Numeric columns should
    be scaled.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(256, 256, 256)
        Width of each hidden layer; the last is the width of the embedding.
    activation : {"identity", "relu", "gelu", "silu", "tanh"}, default="relu"
        Nonlinearity of the hidden layers.
    dropout : float or "auto", default="auto"
        In [0, 1). Probability that a hidden unit is zeroed in a training step. "auto"
        is 0.2. With ``max_epochs="auto"`` beside it, `fit` chooses both: see Notes.
    normalization : {None, "batch", "layer"}, default="batch"
        Normalisation before each activation. Without it another learning rate and other
        first weights do what a temperature does, see
        :func:`sksoftrank.theory.dual_settings`.
    input_scale : bool, default=True
        Whether each input feature has a learned factor, trained at six times the rate,
        so that the network can weigh features.
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

    Notes
    -----
    With dropout and max_epochs "auto", `fit` holds out a fifth of the rows, and of less
    than a thousand another fifth in turn, or two, to make two hundred. On the rest it
    trains shortly with a dropout of 0.4, twice as long with 0.2, and eight times as
    long with 0.1, of ten thousand rows or more with none as well; with less than a
    thousand rows, four times as long with 0.2. What is
    the most accurate on the rows held out, of equals the one of the lowest log loss, is
    then trained on all rows. The rows held out also give the factor `logit_scale_`,
    which makes up for smoothed labels in the probabilities. Beside

    - few rows, up to 49: nothing is held out, and the second of these is the training;
    - `groups` in `fit`: whole groups are held out, and with one group none;
    - weights of rows or classes: the accuracy is weighted;
    - a class of few rows: each is spread evenly over the fifths, so that of one with
      less than five some fifths have none;
    - `early_stopping`, rows that come in passes: nothing is chosen, as with few rows;
    - `partial_fit`: an epoch is what a call brings, and dropout 0.2;
    - `warm_start`: what the first `fit` chose, `logit_scale_` included, is kept;
    - a grid search: each candidate chooses anew, on the rows of its training.

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
        **BaseSoftRankClassifier._parameter_constraints,
        **CATEGORY_CONSTRAINTS,
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "dropout": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "normalization": [StrOptions(set(NORMALIZATIONS)), None],
        "input_scale": ["boolean"],
        "init_scale": [Interval(Real, 0, None, closed="neither")],
    }

    _shared_defaults: ClassVar[SharedParameters] = {**RECIPE, "temperature": 10.0}

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (256, 256, 256),
        *,
        activation: str = "relu",
        dropout: float | str = "auto",
        normalization: str | None = "batch",
        input_scale: bool = True,
        init_scale: float = 1.0,
        categorical_features: Any = "from_dtype",
        handle_unknown: str = "infrequent_if_exist",
        **shared: Unpack[SharedParameters],
    ) -> None:
        super().__init__(**shared)
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.normalization = normalization
        self.input_scale = input_scale
        self.init_scale = init_scale
        self.categorical_features = categorical_features
        self.handle_unknown = handle_unknown

    def _widths(self) -> tuple[int, ...]:
        sizes: Any = self.hidden_layer_sizes
        widths = (sizes,) if isinstance(sizes, Integral) else as_tuple(sizes)
        if not widths or not all(
            isinstance(w, Integral) and int(w) >= 1 for w in widths
        ):
            raise ValueError(
                "hidden_layer_sizes must be one or more positive integers, got "
                f"{sizes!r}. Use e.g. (128, 128)."
            )
        return tuple(int(width) for width in widths)

    def _architecture(self) -> Architecture:
        widths = self._widths()
        return Architecture(
            MLP,
            {
                "hidden_layer_sizes": widths,
                "activation": self.activation,
                "dropout": self.dropout,
                "normalization": self.normalization,
                "input_scale": self.input_scale,
                "init_scale": float(self.init_scale),
            },
            ("n_features",),
            InputReader(
                axes=(1,),
                encoder_class=OneHotCategories,
                categorical_features=self.categorical_features,
                handle_unknown=self.handle_unknown,
            ),
            embedding_width=widths[-1],
            base_rates=MLP_RATES,
            inference_rows=INFERENCE_ROWS,
        )
