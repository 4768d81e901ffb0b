"""The hyperparameters that all classifiers share: each is told of here, and once.

A class names its own parameters in its `__init__` and hands the others on as
``**shared``. Its signature lists them all, and its docstring has their documentation.
"""

import inspect
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from textwrap import dedent, indent
from typing import Annotated, Any, ClassVar, TypedDict, Unpack, get_type_hints

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sksoftrank._sklearn import HasMethods, Interval, StrOptions
from sksoftrank.losses import TemperatureSchedule

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
# What learning_rate="auto" is at temperature 1, and the power of the temperature that
# multiplies it.
BASE_RATES = {"adam": (1e-3, 0.5), "adamw": (1e-3, 0.5), "sgd": (5e-2, 0.5)}
# In perceptrons: from temperature 0.3 to 100 accuracy is flattest without a power.
MLP_RATES = {**BASE_RATES, "adam": (1e-2, 0.0), "adamw": (1e-2, 0.0)}
# In these T=10 trains as well as T=1 with the fourth root.
CNN_RATES = {**BASE_RATES, "adam": (5e-3, 0.25), "adamw": (5e-3, 0.25)}
TRANSFORMER_RATES = {**BASE_RATES, "adam": (1e-3, 0.25), "adamw": (1e-3, 0.25)}


@dataclass(frozen=True)
class Parameter:
    """What `SharedParameters` says of a parameter."""

    type: Any
    default: Any
    constraints: list[Any]
    doc: str

    def describe(self, name: str, default: Any) -> str:
        """Return the entry of a docstring."""
        kind, text = self.doc.split("\n", 1)
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        return f"{name} : {kind}, default={shown}\n{indent(dedent(text), '    ')}"


POSITIVE = Interval(Real, 0, None, closed="neither")
NON_NEGATIVE = Interval(Real, 0, None, closed="left")
SHARE = Interval(Real, 0, 1, closed="left")
PART = Interval(Real, 0, 1, closed="neither")
COUNT = Interval(Integral, 1, None, closed="left")
INDEX = Interval(Integral, 0, None, closed="left")


class SharedParameters(TypedDict, total=False):
    """Type, default, constraints and documentation of each shared parameter.

    The documentation begins with the type as numpydoc writes it.
    """

    # fmt: off
    temperature: Annotated[float | TemperatureSchedule, 1.0,
        [POSITIVE, TemperatureSchedule], """float or TemperatureSchedule
        Positive. Softmax temperature of the training, or a schedule from
        `sksoftrank.losses`."""]
    target_rank: Annotated[float | None, None, [COUNT, PART, None],
        """int, float or None
        Rank of the embedding to find the temperature for, `temperature` left at its
        default: a number of directions, or in (0, 1) a share of those at a temperature
        of 1. Three networks are trained before on four fifths of the rows, whose rest
        tells whether the accuracy stays within `compression_tol`, and one or two on
        all. A network further from it than a tenth, or one, is warned of."""]
    n_components: Annotated[str | float | None, "auto",
        [StrOptions({"auto"}), COUNT, PART, None], """"auto", int, float or None
        Columns of `transform`. "auto" keeps the fewest directions whose reconstruction,
        passed through the head, is expected to keep the accuracy on new rows within
        `compression_tol` of the full network; an int that many; a float in (0, 1) the
        fewest that hold that share of the variance; None all."""]
    compression_tol: Annotated[float, 0.005, [SHARE], """float
        In [0, 1). Accuracy that "auto" may lose on new rows, as `RankCompressor`
        expects it from the margins of the rows that `fit` was given, held-out ones
        among them."""]
    optimizer: Annotated[str, "adam", [StrOptions(set(OPTIMIZERS))],
        """{"adam", "adamw", "sgd"}
        "sgd" has a Nesterov momentum of 0.9."""]
    learning_rate: Annotated[str | float, "auto", [StrOptions({"auto"}), POSITIVE],
        """"auto" or float
        "auto" is, for "adam" and "adamw", 0.01 in multi-layer perceptrons, whatever the
        temperature; times its fourth root 0.005 in convolutional networks, 0.001 in
        transformers; times its square root 0.001 in other modules, and so 0.05 for
        "sgd"."""]
    betas: Annotated[tuple[float, float], (0.9, 0.999), ["array-like"],
        """tuple of two floats
        In [0, 1). Decay of the means of gradients and of their squares in "adam" and
        "adamw"; "sgd" has none."""]
    weight_decay: Annotated[float, 0.0, [NON_NEGATIVE], """float
        Non-negative. L2 penalty on weight matrices; biases, scales, positions and the
        vectors of columns and categories have none. Decoupled from the gradient for
        "adamw"."""]
    lr_schedule: Annotated[str, "cosine",
        [StrOptions({"cosine", "warmup_cosine", "constant"})],
        """{"cosine", "warmup_cosine", "constant"}
        Learning rate over the epochs: down half a cosine to zero, the same after a rise
        over the first tenth, or as it is."""]
    label_smoothing: Annotated[float, 0.0, [SHARE], """float
        In [0, 1). Share of each label spread evenly over the classes."""]
    max_grad_norm: Annotated[float | None, None, [POSITIVE, None], """float
        Positive. Longer gradients are scaled down to this Euclidean norm; None leaves
        them as they are."""]
    max_epochs: Annotated[int | str, 50, [COUNT, StrOptions({"auto"})],
        """int or "auto"
        Passes over the training rows, at most. "auto" makes about 13.4 times the square
        root of their number steps, of n rows above 2,000 another (n / 2000) ** 0.25
        times as many."""]
    batch_size: Annotated[int | str, 128, [COUNT, StrOptions({"auto"})],
        """int or "auto"
        Rows of a training step. "auto" is the power of two next to three times the
        square root of their number, from 32 to 256."""]
    early_stopping: Annotated[bool, False, ["boolean"], """bool
        Whether to hold out rows, stop when the accuracy on them no longer rises, and go
        back to the weights of the best epoch; of equals, the one whose loss at the
        schedule's last temperature is least."""]
    validation_fraction: Annotated[float, 0.1, [PART], """float
        In (0, 1). Share of the rows held out for early stopping."""]
    n_iter_no_change: Annotated[int, 10, [COUNT], """int
        Epochs without a better validation accuracy before training stops."""]
    tol: Annotated[float, 1e-4, [NON_NEGATIVE], """float
        Non-negative. Rise in validation accuracy that counts as better."""]
    class_weight: Annotated[dict[Any, float] | str | None, None,
        [StrOptions({"balanced"}), dict, None], """dict, "balanced" or None
        Weights of the classes by label; "balanced" gives every class the same sum."""]
    warm_start: Annotated[bool, False, ["boolean"], """bool
        Whether `fit` starts from the weights of the previous fit."""]
    callbacks: Annotated[list[Any] | None, None, [list, tuple, None], """list
        Of skorch: callbacks, or pairs of a name and a callback. Copied for each
        fit."""]
    checkpoint: Annotated[str | PathLike[str] | None, None, [str, PathLike, None],
        """str, PathLike or None
        File that `fit` is written to after each epoch, and goes on from if it was
        killed, to the same weights; it is deleted at the end. Of epochs so short that
        writing would take more than a twentieth of the time, some are not written. The
        file of a fit with other parameters or data is refused."""]
    net_params: Annotated[dict[str, Any] | None, None, [dict, None], """dict
        Further arguments of :class:`sksoftrank.SoftRankNet`, such as
        ``{"optimizer": torch.optim.RMSprop}``."""]
    device: Annotated[str | int | torch.device, "auto",
        [str, torch.device, HasMethods("type"), INDEX], """str, int or torch.device
        Where to train and predict; "auto" takes CUDA or MPS where there is one, an int
        the CUDA device of that index. A fitted estimator that is unpickled where there
        is no such device goes to the CPU."""]
    precision: Annotated[str, "float32", [StrOptions({"float32", "bf16", "tf32"})],
        """{"float32", "bf16", "tf32"}
        Of the training: "bf16" computes forward and backward in half precision where
        that is safe, "tf32" lets CUDA shorten the factors of matrix products.
        Predictions are made in the precision of `X`."""]
    compile: Annotated[bool, False, ["boolean"], """bool
        Whether to train through :func:`torch.compile`."""]
    random_state: Annotated[int | np.random.RandomState | None, None, ["random_state"],
        """int, RandomState instance or None
        Seeds the initial weights, the order of the rows, dropout and the split for
        early stopping. No global generator is ever used. On a GPU, CNNs and
        transformers repeat to a rounding: torch adds up their gradients in no fixed
        order."""]
    verbose: Annotated[int, 0, ["verbose"], """int
        Above 0, a line is printed for each epoch; above 1, a bar shows its
        progress."""]
    # fmt: on


# What the package's own networks are trained with.
RECIPE: SharedParameters = {
    "optimizer": "adamw",
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "max_epochs": "auto",
    "batch_size": "auto",
}

PARAMETERS: dict[str, Parameter] = {
    name: Parameter(hint.__origin__, *hint.__metadata__)
    for name, hint in get_type_hints(SharedParameters, include_extras=True).items()
}

_ATTRIBUTES = """\
classes_ : ndarray of shape (n_classes,)
    Labels seen during fit.
n_features_in_ : int
    Columns seen during fit.
feature_names_in_ : ndarray of shape (n_features_in_,)
    Names of the columns, where `X` had any.
auto_params_ : dict
    Epochs, batch size and dropout of the training, which "auto" may have chosen.
logit_scale_ : float
    What the logits were multiplied by after the training, for the least log loss on the
    rows that "auto" held out to choose by; 1 where it held out none.
n_iter_ : int
    Epochs trained.
temperature_ : float
    Temperature of the epoch whose weights are kept; with `target_rank`, what was found.
net_ : SoftRankNet
    The trained skorch net.
module_ : torch.nn.Module
    The trained network.
history_ : list of dict
    One dictionary an epoch: losses, accuracy, temperature, learning rate.
loss_curve_ : list of float
    Mean training loss of each epoch, by `history_`.
validation_scores_ : list of float or None
    Accuracy of each epoch on the rows held out for early stopping; None without.
best_validation_score_ : float or None
    The best of these.
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
    Mean Euclidean norm of the logits of the same rows.
training_accuracy_ : float
    Accuracy on the same rows."""


class SharedParametersMixin(BaseEstimator):
    """Takes the shared parameters, and shows them where a subclass takes ``**shared``.

    In a subclass's docstring, "%(parameters)s" and "%(attributes)s" stand for the
    documentation of what all share.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        name: parameter.constraints for name, parameter in PARAMETERS.items()
    }
    # Where a class's defaults differ.
    _shared_defaults: ClassVar[SharedParameters] = {}

    def __init__(self, **shared: Unpack[SharedParameters]) -> None:
        defaults = {name: parameter.default for name, parameter in PARAMETERS.items()}
        unknown = [name for name in shared if name not in defaults]
        if unknown:
            raise TypeError(
                f"{type(self).__qualname__}.__init__() got an unexpected keyword "
                f"argument {unknown[0]!r}"
            )
        for name, value in {**defaults, **self._shared_defaults, **shared}.items():
            setattr(self, name, value)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            init: Any = cls.__init__
            init.__signature__ = _full_signature(cls)
        if not vars(cls).get("__doc__"):  # Python may run without docstrings.
            return
        known = inspect.signature(cls.__init__).parameters
        entries = [
            parameter.describe(name, known[name].default)
            for name, parameter in PARAMETERS.items()
            if name in known
        ]
        for mark, text in (
            ("    %(parameters)s", "\n".join(entries)),
            ("    %(attributes)s", _ATTRIBUTES),
        ):
            cls.__doc__ = str(cls.__doc__).replace(mark, indent(text, "    "))


def _full_signature(cls: type[SharedParametersMixin]) -> inspect.Signature:
    """Return the signature of `__init__` with what it hands on by ``**`` spelt out."""
    signature = inspect.signature(cls.__init__)
    own = dict(signature.parameters)
    handed_on = [name for name, p in own.items() if p.kind is p.VAR_KEYWORD]
    if not handed_on:
        return signature
    del own[handed_on[0]]
    _, *inherited = inspect.signature(super(cls, cls).__init__).parameters.values()
    changed = vars(cls).get("_shared_defaults", {})
    rest = [
        own.pop(p.name, p.replace(default=changed.get(p.name, p.default)))
        for p in inherited
    ]
    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in rest]
    return signature.replace(parameters=[*own.values(), *keywords])


SharedParametersMixin.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=parameter.default,
                annotation=parameter.type,
            )
            for name, parameter in PARAMETERS.items()
        ),
    ]
)
