"""A fitted network made smaller: layers cut to the directions that are used."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from sksoftrank._checks import as_labels
from sksoftrank._sklearn import (
    Interval,
    check_weights,
    validate_parameter_constraints,
)
from sksoftrank.compression import expected_loss
from sksoftrank.estimators import (
    BaseSoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.inspection._cut import (
    ROUNDING,
    Cut,
    LayerCut,
    PerceptronCut,
    Rows,
)
from sksoftrank.modules import ReducedModule
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.ood._calibration import encode
from sksoftrank.training._threads import threads_for

KINDS = (
    SoftRankMLPClassifier,
    SoftRankCNNClassifier,
    SoftRankTransformerClassifier,
)
# Rows looked at, at most, and every which of a class is held out to judge by.
_MOST_ROWS = 8192
_HELD_OUT = 4
# Powers of ten of the share of variance given up, and how often their span is halved.
_SHARES = (-7.0, 0.0)
_HALVINGS = 9
# After a distillation more can be given up: by so much more at a time.
_DISTILLED_STEP = 1.5
_MOST_SHARE = 1.0
_DISTILLATION_RATE = 1e-3
_BATCH = 64
# Rows and calls that a latency is measured over.
_TIMED_ROWS = 1000
_TIMED_CALLS = 11

AnyEstimator = TypeVar("AnyEstimator", bound=Any)


def compress_network(
    estimator: AnyEstimator,
    X: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    tol: float = 0.005,
    sample_weight: npt.ArrayLike | None = None,
    distill_epochs: int = 0,
    measure_latency: bool = False,
    random_state: Any = None,
) -> AnyEstimator:
    """Return a smaller network that is expected to classify new rows as well.

    What does nothing by itself is merged: batch normalisation and the scale of the
    input into the weights that they stand beside, and all layers into one where the
    activation is the identity. Then each hidden layer is cut, by whichever of three
    methods leaves the fewest parameters:

    - "rank": its weight becomes the product of two thin ones, through the leading
      principal directions of what the layer gives for the rows, before its activation;
    - "units": units are removed, least first, by what the others can't make up for in
      what the next layer gives, whose weights are fitted anew to those kept;
    - "both": units are removed, and what is left becomes products.

    Each layer is fitted to what the whole network's gave, from what the cut layers
    before it give. One share of the variance is given up in all layers: the largest,
    found by bisection, at which the promise of ``n_components="auto"`` holds on a
    quarter of the rows that nothing was fitted to (see
    :class:`sksoftrank.RankCompressor`).

    Convolutions and transformers are cut by "rank" alone: a convolution to one from
    fewer channels to fewer, between two of a single place; a transformer's linear
    layers, those of its attention among them, to two. There a direction must be worth
    its weights: by the gradients of the logits, it must make up more of their variance
    than the share given up, times the part that its weights are of all, half by their
    number, half by multiply-adds. The head stays whole.

    Parameters
    ----------
    estimator : fitted classifier or Pipeline
        A perceptron, convolutional network or transformer of the package, or a pipeline
        that ends in one. It is left as it is.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Rows that stand for those to be classified, of all classes; of more than 8192 a
        random sample is taken. The rows trained on mostly serve. Of a network that is
        surer of them than of new ones, as transformers at high temperatures are, more
        is cut than new rows bear: pass some that it has not seen as well.
    y : array-like of shape (n_samples,), default=None
        Their labels. None takes the network's own predictions: it is then those that
        are kept.
    tol : float, default=0.005
        In [0, 1). Accuracy that new rows may lose, as a share of them. 0 cuts only what
        no row uses: the logits stay the same to rounding.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative weights of the rows.
    distill_epochs : int, default=0
        Passes over the rows in which the smaller network is trained to give the whole
        one's probabilities at its temperature (Hinton et al. 2015), by Adam. More is
        then cut, as long as the promise holds after training. Nothing is trained where
        `tol` is 0 or nothing can be cut.
    measure_latency : bool, default=False
        Whether to time `predict` of up to 1000 of the rows before and after.
    random_state : int, RandomState instance or None, default=None
        Chooses the rows held out, those of many, and their order in a distillation.

    Returns
    -------
    fitted estimator
        Of the same class, with the same parameters, so that `clone` and `fit` make and
        train the whole network. Its `module_` is a
        :class:`sksoftrank.modules.ReducedModule` without dropout and augmentation,
        `embed` gives what is left of the last hidden layer, and `transform` has a basis
        of its own, of no more columns than that has.

        Its ``compression_report_`` (of a pipeline, its last step's) is a dictionary:
        ``method``, None where nothing could be cut; ``share`` of the variance given up;
        ``expected_loss``, the accuracy that new rows are expected to lose; and, as
        pairs before and after, ``n_parameters``, ``n_multiply_adds`` of weights with
        what comes to them, for one row, and ``latency`` in seconds, None unless asked
        for.

    Raises
    ------
    ValueError
        If the estimator is none of these, or compressed already, a parameter is out of
        range, or the rows lack a class: before any work.
    sklearn.exceptions.NotFittedError
        If the estimator isn't fitted.

    Notes
    -----
    Labels that the network gets right by chance tell little: take rows in distribution.
    Where only a few hundred rows are given, less is cut than could be. A layer
    normalisation stays where it is, and its layers are cut by "rank" alone. All of it
    is computed on the CPU.

    A perceptron is faster by nearly as much as it is smaller. Convolutions of small
    images are so many more calls that they may be no faster on a CPU, whatever is
    saved: ``benchmarks/compress_network.py`` has figures.

    References
    ----------
    Zhang et al. (2016), "Accelerating very deep convolutional networks", section 3, for
    directions of responses and their correction layer by layer; Luo et al. (2017),
    "ThiNet", for removal by what the next layer gives; Hinton et al. (2015),
    arXiv:1503.02531.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.inspection import compress_network
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(dropout=0.2, max_epochs=10, random_state=0)
    >>> small = compress_network(clf.fit(X / 16, y), X / 16, y, random_state=0)
    >>> before, after = small.compression_report_["n_parameters"]
    >>> after < before / 2
    True
    """
    if isinstance(estimator, Pipeline):
        *before, (name, last) = estimator.steps
        _check_estimator(last)
        rows = estimator[:-1].transform(X) if before else X
        small = copy.copy(estimator)
        options: dict[str, Any] = {
            "tol": tol,
            "sample_weight": sample_weight,
            "distill_epochs": distill_epochs,
            "measure_latency": measure_latency,
            "random_state": random_state,
        }
        reduced = compress_network(last, rows, y, **options)
        small.steps = [*copy.deepcopy(before), (name, reduced)]
        return small
    _check_estimator(estimator)
    validate_parameter_constraints(
        {
            "tol": [Interval(Real, 0, 1, closed="left")],
            "distill_epochs": [Interval(Integral, 0, None, closed="left")],
            "measure_latency": ["boolean"],
            "random_state": ["random_state"],
        },
        {
            "tol": tol,
            "distill_epochs": distill_epochs,
            "measure_latency": measure_latency,
            "random_state": random_state,
        },
        caller_name="compress_network",
    )
    data = _read(estimator, X, y, sample_weight)
    rng = check_random_state(random_state)
    is_mlp = isinstance(estimator, SoftRankMLPClassifier)
    widest = max(p.numel() for p in estimator.module_.parameters())
    with torch_defaults(), threads_for(widest) if is_mlp else nullcontext():
        rows, held = _split(estimator, data, rng)
        judge = _Judge(held)
        with torch.no_grad():
            cut = (PerceptronCut if is_mlp else LayerCut)(estimator, rows)
            best = _choose(cut, judge, float(tol))
        if distill_epochs and tol > 0 and best.method is not None:

            def distil(module: ReducedModule) -> ReducedModule:
                temperature = estimator.temperature_
                return train_like(module, rows, distill_epochs, temperature, rng)

            best = _choose_distilled(cut, best, judge, float(tol), distil)
    small = _with_module(estimator, best.module)
    size = small.n_components
    if isinstance(size, Integral):
        size = min(int(size), small.module_.embedding_width)
    small._fit_compressor(
        data.rows, data.codes, data.weight, size, small.compression_tol
    )
    small.compression_report_ = {
        "method": best.method,
        "share": best.share,
        "expected_loss": best.loss,
        "n_parameters": tuple(_n_parameters(e.module_) for e in (estimator, small)),
        "n_multiply_adds": tuple(
            _n_multiply_adds(e, data.rows[:1]) for e in (estimator, small)
        ),
        "latency": _latencies((estimator, small), X) if measure_latency else None,
    }
    return small


# -- What comes in -------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """Rows as the network takes them, the column of each one's class, its weight."""

    rows: Any
    codes: npt.NDArray[Any]
    weight: npt.NDArray[np.float64]


def _check_estimator(estimator: Any) -> None:
    if not isinstance(estimator, KINDS):
        raise ValueError(
            f"estimator must be one of {[kind.__name__ for kind in KINDS]} or a "
            f"pipeline that ends in one, got {type(estimator).__name__}. Pass a member "
            "of an ensemble, or a search's best_estimator_."
        )
    check_is_fitted(estimator)
    if isinstance(estimator.module_, ReducedModule):
        raise ValueError(
            "estimator must hold the network that was trained, got one that "
            "compress_network has made smaller. Pass the original, with a larger tol."
        )


def _read(
    estimator: BaseSoftRankClassifier, X: Any, y: Any, sample_weight: Any
) -> _Data:
    rows = estimator._validate_rows(X)
    if callable(rows):
        raise ValueError(
            f"X must be an array, got {type(X).__name__}. Pass some thousand rows, "
            "whose layers are held at once."
        )
    n_rows = rows.shape[0]
    labels = estimator._predict(rows) if y is None else as_labels("y", y, n_rows)
    codes = encode("y", labels, estimator.classes_)
    weight = np.ones(n_rows)
    if sample_weight is not None:
        weight = check_weights(sample_weight, rows)
    present = np.unique(codes[weight > 0])
    absent = np.delete(estimator.classes_, present)
    if absent.size:
        what = "be predicted as all classes" if y is None else "be of all classes"
        raise ValueError(
            f"X must hold rows that {what} that the network knows, got none of "
            f"{absent.tolist()}. Pass rows of those too, such as those trained on."
        )
    used = np.flatnonzero(weight > 0)
    return _Data(rows[used], codes[used], weight[used])


def _split(
    estimator: BaseSoftRankClassifier, data: _Data, rng: np.random.RandomState
) -> tuple[Rows, Rows]:
    """Return rows to fit to and rows to judge by, of each class alike."""
    order = rng.permutation(len(data.codes))
    by_class = order[np.argsort(data.codes[order], kind="stable")]
    # Evenly over the classes, so that none is lost of many.
    step = max(len(by_class) / _MOST_ROWS, 1.0)
    sample = by_class[np.arange(0, len(by_class), step).astype(int)]
    # At the end of each: of a class of one row it is fitted to.
    is_held = np.arange(len(sample)) % _HELD_OUT == _HELD_OUT - 1
    source = copy.deepcopy(estimator.module_).cpu().double()
    parts = []
    for index in (sample[~is_held], sample[is_held]):
        index = index if len(index) else sample
        chunks = list(estimator._chunks(data.rows[index]))
        x = torch.from_numpy(np.concatenate(chunks)).to(torch.float64)
        weight = torch.from_numpy(data.weight[index])
        codes = torch.from_numpy(data.codes[index].astype(np.int64))
        with torch.no_grad():
            logits = _in_chunks(source, x)
        parts.append(Rows(x, codes, weight / weight.sum(), logits))
    return parts[0], parts[1]


def _in_chunks(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([compute(part) for part in x.split(512)])


# -- How much ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A smaller network, in single precision, and what is expected of it."""

    module: ReducedModule
    method: str | None
    share: float
    loss: float

    @property
    def size(self) -> int:
        return _n_parameters(self.module)


class _Judge:
    """The promise, on rows that nothing was fitted to."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.right = rows.codes[None]
        self.handicap, self.loss = expected_loss(rows.logits.T, self.right, rows.weight)
        self.reached = set(rows.logits.argmax(dim=1).tolist())

    def __call__(
        self, module: ReducedModule, method: str | None, share: float
    ) -> _Candidate:
        double = copy.deepcopy(module).double()
        with torch.no_grad():
            logits = _in_chunks(double, self.rows.x).T
        loss = self.loss(logits.scatter_add(0, self.right, -self.handicap))
        if not self.reached <= set(logits.argmax(dim=0).tolist()):
            loss = np.inf  # A class would be lost, however rare it is.
        return _Candidate(module, method, share, float(loss))


def _choose(cut: Cut, judge: _Judge, tol: float) -> _Candidate:
    """Return the smallest network that keeps the promise."""
    kept = [judge(cut.whole(), None, 0.0)]
    for method in cut.methods:
        kept.append(judge(cut(method, ROUNDING), method, ROUNDING))
        low, high = _SHARES
        for _ in range(_HALVINGS if tol > 0 else 0):
            middle = (low + high) / 2
            found = judge(cut(method, 10.0**middle), method, 10.0**middle)
            if found.loss <= tol + 1e-12:
                kept.append(found)
                low = middle
            else:
                high = middle
    return min(kept, key=lambda candidate: candidate.size)


def _choose_distilled(
    cut: Cut,
    best: _Candidate,
    judge: _Judge,
    tol: float,
    distil: Callable[[ReducedModule], ReducedModule],
) -> _Candidate:
    """Return the smallest network that, distilled, keeps the promise.

    From the one that keeps it as it is, on to smaller ones, up to the first that does
    not.
    """
    share = best.share
    found = judge(distil(best.module), best.method, share)
    while found.loss <= tol + 1e-12:
        best = found
        share *= _DISTILLED_STEP
        if share >= _MOST_SHARE:
            break
        with torch.no_grad():
            module = cut(best.method, share)
        found = judge(distil(module), best.method, share)
    return best


def train_like(
    module: ReducedModule,
    rows: Rows,
    n_epochs: int,
    temperature: float,
    rng: np.random.RandomState,
    rate: float = _DISTILLATION_RATE,
) -> ReducedModule:
    """Return a copy of a network, trained to give the probabilities of rows."""
    module = copy.deepcopy(module).float().train()
    x, targets = rows.x.float(), (rows.logits / temperature).softmax(dim=1).float()
    weight = (rows.weight * len(x)).float()
    # Once through the rows at least, and no step on one row alone.
    n_batches = max(len(x) // _BATCH, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, n_epochs * n_batches
    )
    for _ in range(n_epochs):
        order = torch.from_numpy(rng.permutation(len(x)))
        for index in order.tensor_split(n_batches):
            logits = module(x[index]) / temperature
            losses = F.cross_entropy(logits, targets[index], reduction="none")
            optimizer.zero_grad()
            (weight[index] * losses).mean().backward()
            optimizer.step()
            schedule.step()
    return module.eval()


# -- What comes out ------------------------------------------------------------------


def _with_module(estimator: AnyEstimator, module: ReducedModule) -> AnyEstimator:
    """Return a copy of an estimator that holds another network."""
    state = estimator.__getstate__()
    kind = {
        "original": module.original,
        "original_params": module.original_params,
        "replaced": module.replaced,
    }
    state["_net_recipe"] = (ReducedModule, kind)
    state["_weights"] = {
        name: tensor.numpy(force=True) for name, tensor in module.state_dict().items()
    }
    small: Any = object.__new__(type(estimator))
    small.__setstate__(copy.deepcopy(state))
    return small


def _n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _n_multiply_adds(estimator: BaseSoftRankClassifier, row: Any) -> int:
    """Return the products of weights with what comes to them, for one row."""
    counts: list[int] = []

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    module = copy.deepcopy(estimator.module_).cpu().double()
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            part.register_forward_hook(count)
    (chunk,) = estimator._chunks(row)
    with torch_defaults(), torch.no_grad():
        module(torch.from_numpy(np.asarray(chunk)).double())
    return sum(counts)


def _latencies(estimators: tuple[Any, ...], X: Any) -> tuple[float, ...]:
    """Return the median time of a prediction, each taken in turn."""
    rows = X[:_TIMED_ROWS]
    times: list[list[float]] = []
    for _ in range(_TIMED_CALLS):
        times.append([])
        for estimator in estimators:
            start = time.perf_counter()
            estimator.predict(rows)
            times[-1].append(time.perf_counter() - start)
    return tuple(float(t) for t in np.median(times, axis=0))
