"""What the docstrings of the classifiers share, written once."""

from __future__ import annotations

from textwrap import indent
from typing import TypeVar

T = TypeVar("T", bound=type)

_PARAMETERS = """\
temperature : float or TemperatureSchedule, default=1.0
    Positive. Softmax temperature of the training, or a schedule from
    `sksoftrank.losses`.
n_components : "auto", int, float or None, default="auto"
    Columns of `transform`. "auto" keeps the fewest directions whose reconstruction,
    passed through the head, is expected to keep the accuracy on new rows within
    `compression_tol` of the full network; an int that many; a float in (0, 1) the
    fewest that hold that share of the variance; None all.
compression_tol : float, default=0.005
    In [0, 1). Accuracy that "auto" may lose on new rows, as `RankCompressor` expects it
    from the margins of the rows that `fit` was given, held-out ones among them.
optimizer : {{"adam", "adamw", "sgd"}}, default="{optimizer}"
    "sgd" has a Nesterov momentum of 0.9.
learning_rate : "auto" or float, default="auto"
    "auto" is a base rate ({base_rate} for "adam" and "adamw", 0.05 for "sgd") times the
    square root of the temperature.
weight_decay : float, default={weight_decay}
    Non-negative. L2 penalty on weight matrices; biases, scales, positions and the
    vectors of columns and categories have none. Decoupled from the gradient for
    "adamw".
lr_schedule : {{"cosine", "warmup_cosine", "constant"}}, default="{lr_schedule}"
    Learning rate over the epochs: down half a cosine to zero, the same after a rise
    over the first tenth, or as it is.
label_smoothing : float, default=0.0
    In [0, 1). Share of each label spread evenly over the classes.
max_grad_norm : float, default={max_grad_norm}
    Positive. Longer gradients are scaled down to this Euclidean norm; None leaves
    them as they are.
max_epochs : int, default={max_epochs}
    Passes over the training rows, at most.
batch_size : int, default={batch_size}
    Rows of a training step.
early_stopping : bool, default=False
    Whether to hold out rows, stop when the accuracy on them no longer rises, and
    go back to the weights of the best epoch; of equals, the one whose loss at the
    schedule's last temperature is least.
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
    ``{{"optimizer": torch.optim.RMSprop}}``.
device : str, int or torch.device, default="auto"
    Where to train and predict; "auto" takes CUDA or MPS where there is one, an int
    the CUDA device of that index. A fitted estimator that is unpickled where there is
    no such device goes to the CPU.
precision : {{"float32", "bf16", "tf32"}}, default="float32"
    Of the training: "bf16" computes forward and backward in half precision where that
    is safe, "tf32" lets CUDA shorten the factors of matrix products. Predictions are
    made in the precision of `X`.
compile : bool, default=False
    Whether to train through :func:`torch.compile`.
random_state : int, RandomState instance or None, default=None
    Seeds the initial weights, the order of the rows, dropout and the split for
    early stopping. No global generator is ever used.
verbose : int, default=0
    Above 0, a line is printed for each epoch; above 1, a bar shows its progress."""

_ATTRIBUTES = """\
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
    Singular values of the centred embedding of the rows that `fit` was given (of 4,096
    at most).
rank_ : int
    Singular values above a hundredth of the largest.
logit_norm_ : float
    Mean Euclidean norm of the logits of the same rows."""

_DEFAULTS = {
    "optimizer": "adam",
    "weight_decay": "0.0",
    "base_rate": "0.001",
    "lr_schedule": "cosine",
    "max_grad_norm": "None",
    "max_epochs": "50",
    "batch_size": "128",
}


def document_shared(**defaults: str):  # type: ignore[no-untyped-def]
    """Fill in what all classifiers have in common, at "%(parameters)s" and the like."""
    parameters = _PARAMETERS.format(**{**_DEFAULTS, **defaults})

    def fill(cls: T) -> T:
        if cls.__doc__:  # Python may run without docstrings.
            cls.__doc__ = cls.__doc__.replace(
                "    %(parameters)s", indent(parameters, "    ")
            ).replace("    %(attributes)s", indent(_ATTRIBUTES, "    "))
        return cls

    return fill
