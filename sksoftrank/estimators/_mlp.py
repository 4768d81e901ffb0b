"""The multi-layer perceptron as an estimator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.losses import TemperatureSchedule
from sksoftrank.modules import MLP, EmbedHeadModule
from sksoftrank.modules._mlp import ACTIVATIONS, NORMALIZATIONS
from sksoftrank.training._stacked import stack_bytes, stack_size


class SoftRankMLPClassifier(BaseSoftRankClassifier):
    """Multi-layer perceptron whose softmax temperature sets the rank of its embedding.

    Trained with ``cross_entropy(logits / temperature, y)``. A high temperature gives
    embeddings of low rank, that compress to a few columns; a low one keeps many
    directions. `predict` classifies, `transform` yields the compressed embedding.

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
    temperature : float or TemperatureSchedule, default=1.0
        Positive. Softmax temperature of the training, or a schedule from
        `sksoftrank.losses`.
    n_components : "auto", int, float or None, default="auto"
        Columns of `transform`. "auto" keeps the fewest directions whose reconstruction,
        passed through the head, keeps the accuracy on the training rows within
        `compression_tol` of the full network; an int that many; a float in (0, 1) the
        fewest that hold that share of the variance; None all.
    compression_tol : float, default=0.005
        In [0, 1). Accuracy that "auto" may lose.
    optimizer : {"adam", "adamw", "sgd"}, default="adam"
        "sgd" has a Nesterov momentum of 0.9.
    learning_rate : "auto" or float, default="auto"
        "auto" is a base rate (0.001 for "adam" and "adamw", 0.05 for "sgd") times the
        square root of the temperature.
    weight_decay : float, default=0.0
        Non-negative. L2 penalty; decoupled from the gradient for "adamw".
    lr_schedule : {"cosine", "constant"}, default="cosine"
        Learning rate over the epochs: down half a cosine to zero, or as it is.
    label_smoothing : float, default=0.0
        In [0, 1). Share of each label spread evenly over the classes.
    max_grad_norm : float, default=None
        Positive. Longer gradients are scaled down to this Euclidean norm; None leaves
        them as they are.
    max_epochs : int, default=50
        Passes over the training rows, at most.
    batch_size : int, default=128
        Rows of a training step.
    early_stopping : bool, default=False
        Whether to hold out rows, stop when the accuracy on them no longer rises, and
        go back to the weights of the best epoch.
    validation_fraction : float, default=0.1
        In (0, 1). Share of the rows held out for early stopping.
    n_iter_no_change : int, default=10
        Epochs without a better validation accuracy before training stops.
    tol : float, default=0.0001
        Non-negative. Rise in validation accuracy that counts as better.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes by label; "balanced" gives every class the same sum.
    warm_start : bool, default=False
        Whether `fit` starts from the weights of the previous fit.
    callbacks : list, default=None
        Of skorch: callbacks, or pairs of a name and a callback. Copied for each fit.
    net_params : dict, default=None
        Further arguments of :class:`sksoftrank.SoftRankNet`, such as
        ``{"optimizer": torch.optim.RMSprop}``.
    device : str or torch.device, default="auto"
        Where to train and predict; "auto" takes CUDA or MPS where there is one.
    random_state : int, RandomState instance or None, default=None
        Seeds the initial weights, the order of the rows, dropout and the split for
        early stopping. No global generator is ever used.
    verbose : int, default=0
        Above 0, a line is printed for each epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels seen during fit.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.
    n_iter_ : int
        Epochs trained.
    temperature_ : float
        Temperature of the epoch whose weights are kept.
    net_ : SoftRankNet
        The trained skorch net.
    module_ : torch.nn.Module
        The trained network.
    history_ : list of dict
        One dictionary an epoch: losses, accuracy, temperature, learning rate.
    compressor_ : RankCompressor
        The basis that `transform` projects on.
    n_components_ : int
        Columns of `transform`.
    singular_values_ : ndarray of shape (d,)
        Singular values of the centred training embedding (of 4,096 rows at most).
    rank_ : int
        Singular values above a hundredth of the largest.
    logit_norm_ : float
        Mean Euclidean norm of the training logits.

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
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "normalization": [StrOptions(set(NORMALIZATIONS)), None],
        "init_scale": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str | None = None,
        init_scale: float = 1.0,
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
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.normalization = normalization
        self.init_scale = init_scale
        self.temperature = temperature
        self.n_components = n_components
        self.compression_tol = compression_tol
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.label_smoothing = label_smoothing
        self.max_grad_norm = max_grad_norm
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.net_params = net_params
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

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

    def _module_obstacle(self) -> str | None:
        if self.normalization is not None:
            return (
                f"normalization={self.normalization!r} couples what a stack keeps apart"
            )
        return None

    def _stack_key(self) -> tuple[Hashable, ...]:
        return (
            *(self._widths(), self.activation, self.optimizer, self.batch_size),
            str(self.device),
        )

    def _stack_size(
        self, n_features: int, n_classes: int, n_networks: int, n_workers: int
    ) -> int:
        return stack_size(
            (n_features, *self._widths(), n_classes),
            self.batch_size,
            n_networks,
            n_workers,
            self._resolve_device(),
        )

    def _stack_bytes(self, n_features: int, n_classes: int, n_networks: int) -> int:
        widths = (n_features, *self._widths(), n_classes)
        return stack_bytes(widths, self.batch_size, n_networks)

    def _min_batch_size(self) -> int:
        # Batch normalisation has no variance to divide by in a batch of one.
        return 2 if self.normalization == "batch" else 1

    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        return MLP, {
            "n_features": n_features,
            "hidden_layer_sizes": self._widths(),
            "activation": self.activation,
            "dropout": self.dropout,
            "normalization": self.normalization,
            "init_scale": self.init_scale,
        }
