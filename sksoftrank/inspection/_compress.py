"""A fitted network made smaller: layers cut to the directions that are used."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor, nn
from torch.nn import functional as F

from sksoftrank._sklearn import (
    Interval,
    _check_sample_weight,
    validate_parameter_constraints,
)
from sksoftrank.compression import expected_loss
from sksoftrank.estimators import (
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.modules import MLP, EmbedHeadModule, ReducedModule
from sksoftrank.modules._cnn import _ConvBlock
from sksoftrank.modules._layers import ACTIVATIONS, InputScale, torch_defaults
from sksoftrank.modules._transformer import _Patches
from sksoftrank.ood._calibration import encode
from sksoftrank.rank import size_of_share
from sksoftrank.training._threads import threads_for

KINDS = (
    SoftRankMLPClassifier,
    SoftRankCNNClassifier,
    SoftRankTransformerClassifier,
)
# Rows looked at, at most, and every which of a class is held out to judge by.
_MOST_ROWS = 8192
_HELD_OUT = 4
# Of the variance: less is the rounding of weights in single precision.
_ROUNDING = 1e-12
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
# Of their mean square, added to those of gradients: other rows may have others.
_LEAST_GRADIENT = 1e-2

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
        Rows that stand for those to be classified, of all classes. The rows trained on
        serve well; of more than 8192 a random sample is taken.
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
            cut = (_PerceptronCut if is_mlp else _LayerCut)(estimator, rows)
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


@dataclass(frozen=True)
class _Rows:
    """The same in torch: rows (n, ...), codes (n,), weights (n,) of sum 1, logits."""

    x: Tensor
    codes: Tensor
    weight: Tensor
    logits: Tensor


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
    labels = estimator._predict(rows) if y is None else np.asarray(column_or_1d(y))
    if len(labels) != n_rows:
        raise ValueError(
            f"y must hold a label for each of the {n_rows} rows, got {len(labels)}. "
            "Pass as many."
        )
    codes = encode("y", labels, estimator.classes_)
    weight = np.ones(n_rows)
    if sample_weight is not None:
        weight = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
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
) -> tuple[_Rows, _Rows]:
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
        parts.append(_Rows(x, codes, weight / weight.sum(), logits))
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

    def __init__(self, rows: _Rows) -> None:
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


def _choose(cut: _Cut, judge: _Judge, tol: float) -> _Candidate:
    """Return the smallest network that keeps the promise."""
    kept = [judge(cut.whole(), None, 0.0)]
    for method in cut.methods:
        kept.append(judge(cut(method, _ROUNDING), method, _ROUNDING))
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
    cut: _Cut,
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
    rows: _Rows,
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


# -- What is cut ---------------------------------------------------------------------


class _Cut:
    """A trained network, as it is made smaller by a share of variance given up."""

    methods: tuple[str, ...]

    def whole(self) -> ReducedModule:
        """Return the network with nothing cut, of what can be merged."""
        raise NotImplementedError

    def __call__(self, method: str | None, share: float) -> ReducedModule:
        """Return the network less so much."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Affine:
    """Weight (out, in), bias (out,), and the layer normalisation that follows.

    `factors` are the weights whose product it is, where that is smaller.
    """

    factors: tuple[Tensor, ...]
    bias: Tensor
    norm: nn.Module | None = None

    def __call__(self, x: Tensor) -> Tensor:
        for factor in self.factors[:-1]:
            x = x @ factor.T
        return torch.addmm(self.bias, x, self.factors[-1].T)


class _PerceptronCut(_Cut):
    """A multi-layer perceptron, cut layer by layer from the input on."""

    def __init__(self, estimator: BaseSoftRankClassifier, rows: _Rows) -> None:
        module = copy.deepcopy(estimator.module_).cpu().double()
        assert isinstance(module, MLP)
        self.activate = ACTIVATIONS[module.activation]()
        self.params = {
            **estimator.net_.get_params_for("module"),
            "dropout": 0.0,
            "input_scale": False,
            "normalization": "layer" if module.normalization == "layer" else None,
            "random_state": 0,
        }
        self.x, self.weight = rows.x, rows.weight
        self.layers = _merge(module)
        has_norm = module.normalization == "layer"
        self.is_linear = module.activation == "identity" and not has_norm
        self.methods = ("rank",)
        if self.is_linear:
            return
        if not has_norm:
            self.methods = ("rank", "units", "both")
        self.targets: list[Tensor] = []
        self.orders: list[tuple[Tensor, npt.NDArray[Any]]] = []
        h = self.x
        for index, layer in enumerate(self.layers):
            if index and not has_norm:
                _, covariance = _moments(h, self.weight)
                self.orders.append(_order_units(covariance, layer.factors[0]))
            self.targets.append(layer(h))
            h = self._activated(layer, self.targets[-1])

    def _activated(self, layer: _Affine, x: Tensor) -> Tensor:
        x = x if layer.norm is None else layer.norm(x)
        return self.activate(x)

    def whole(self) -> ReducedModule:
        if not self.is_linear:
            return self._build(self.layers)
        weight, bias = self._product()
        left, s, right = torch.linalg.svd(weight, full_matrices=False)
        first = _Affine((s[:, None] * right,), torch.zeros_like(s))
        return self._build([first, _Affine((left,), bias)])

    def _product(self) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that linear layers are together."""
        (weight,), bias = self.layers[0].factors, self.layers[0].bias
        for layer in self.layers[1:]:
            (factor,) = layer.factors
            weight, bias = factor @ weight, factor @ bias + layer.bias
        return weight, bias

    def __call__(self, method: str | None, share: float) -> ReducedModule:
        if self.is_linear:
            weight, bias = self._product()
            mean, covariance = _moments(self.x, self.weight)
            axes = _leading(weight @ covariance @ weight.T, share)
            bias = bias + weight @ mean - axes @ (axes.T @ (weight @ mean))
            first = axes.T @ weight
            return self._build(
                [_Affine((first,), first.new_zeros(len(first))), _Affine((axes,), bias)]
            )
        kept: list[_Affine] = []
        h, units = self.x, None
        is_cut = False
        for index, layer in enumerate(self.layers):
            (weight,), bias = layer.factors, layer.bias
            is_head = index == len(self.layers) - 1
            mean, covariance = _moments(h, self.weight)
            if is_cut:
                weight = weight if units is None else weight[:, units]
                rest = self.targets[index] - h @ weight.T
                change, bias = _regress(rest, h, mean, covariance, self.weight, share)
                weight = weight + change
            if method != "rank" and not is_head:
                order, explained = self.orders[index]
                n_units = np.searchsorted(explained, 1.0 - share) + 1
                units = order[: min(n_units, len(order))].sort().values
                is_cut |= len(units) < len(weight)
                weight, bias = weight[units], bias[units]
            factors: tuple[Tensor, ...] = (weight,)
            if method != "units" and not is_head:
                axes = _leading(weight @ covariance @ weight.T, share)
                rank, (n_out, n_in) = axes.shape[1], weight.shape
                if rank * (n_in + n_out) < n_in * n_out:
                    center = weight @ mean
                    bias = bias + center - axes @ (axes.T @ center)
                    factors = (axes.T @ weight, axes)
                    is_cut = True
            kept.append(_Affine(factors, bias, layer.norm))
            h = self._activated(layer, kept[-1](h))
        return self._build(kept)

    def _build(self, layers: list[_Affine]) -> ReducedModule:
        *hidden, head = layers
        widths = tuple(len(layer.bias) for layer in hidden)
        stride = 2 if self.layers[0].norm is None else 3
        # Before a normalisation a layer has no bias, which what is cut needs.
        replaced = {
            f"body.{stride * index}": (
                layer.factors[0].shape[1],
                *(len(factor) for factor in layer.factors),
            )
            for index, layer in enumerate(hidden)
            if len(layer.factors) > 1 or layer.norm is not None
        }
        params = {**self.params, "hidden_layer_sizes": widths}
        module = ReducedModule(MLP, params, replaced)
        for index, layer in enumerate(hidden):
            _set(module.base.get_submodule(f"body.{stride * index}"), layer)
            if layer.norm is not None:
                norm = module.base.get_submodule(f"body.{stride * index + 1}")
                norm.load_state_dict(layer.norm.state_dict())
        _set(module.base.get_submodule("output"), head)
        return module.eval()


def _set(module: Any, layer: _Affine) -> None:
    """Give a linear map, or two, their weights."""
    parts = [*module] if isinstance(module, nn.Sequential) else [module]
    with torch.no_grad():
        for part, factor in zip(parts, layer.factors, strict=True):
            part.weight.copy_(factor.view(part.weight.shape))
        parts[-1].bias.copy_(layer.bias)


def _merge(module: MLP) -> list[_Affine]:
    """Return the linear layers, with what can be merged into them, and the head."""
    layers: list[_Affine] = []
    weight: Any
    bias: Any
    scale: Any = None
    for part in [*module.body, module.output]:
        if isinstance(part, InputScale):
            scale = part.weight.detach()
        elif isinstance(part, nn.Linear):
            weight = part.weight.detach()
            weight = weight if scale is None else weight * scale
            bias = weight.new_zeros(len(weight)) if part.bias is None else part.bias
            layers.append(_Affine((weight,), bias.detach()))
            scale = None
        elif isinstance(part, nn.BatchNorm1d):
            (weight,), bias = layers[-1].factors, layers[-1].bias
            factor, offset = _affine(part)
            layers[-1] = _Affine((factor[:, None] * weight,), factor * bias + offset)
        elif isinstance(part, nn.LayerNorm):
            layers[-1] = _Affine(layers[-1].factors, layers[-1].bias, part)
    return layers


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return what a batch normalisation in evaluation multiplies by and adds."""
    factor = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return factor, norm.bias.detach() - norm.running_mean * factor


def _moments(h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean and covariance of rows."""
    mean = weight @ h
    centered = h - mean
    return mean, (centered * weight[:, None]).T @ centered


def _leading(covariance: Tensor, share: float) -> Tensor:
    """Return the fewest directions, as columns, without which at most a share goes."""
    values, axes = torch.linalg.eigh(covariance)
    size = size_of_share(values.flip(0).clamp_min(0).numpy(), 1.0 - share)
    return axes.flip(1)[:, :size]


def _order_units(covariance: Tensor, weight: Tensor) -> tuple[Tensor, npt.NDArray[Any]]:
    """Return units, each the best to add, and the share that those so far explain.

    Of the variance of ``weight @ h``, by a pivoted Cholesky decomposition. Those left
    out are linear combinations of the others.
    """
    rest, effect = covariance.clone(), weight @ covariance
    total = float((effect * weight).sum())
    least = 1e-13 * covariance.diagonal().clone()
    order: list[int] = []
    explained: list[float] = []
    sum_so_far = 0.0
    for _ in range(len(rest)):
        own = rest.diagonal()
        gains = torch.where(own > least, effect.square().sum(dim=0) / own, -1.0)
        unit = int(gains.argmax())
        if order and (gains[unit] <= 0 or sum_so_far >= (1 - _ROUNDING / 10) * total):
            break
        column, effect_of = rest[unit].clone(), effect[:, unit].clone()
        order.append(unit)
        sum_so_far += max(float(gains[unit]), 0.0)
        explained.append(sum_so_far / total if total > 0 else 1.0)
        if float(own[unit]) > 0:
            column /= own[unit].sqrt()
            effect -= torch.outer(effect_of / own[unit].sqrt(), column)
            rest -= torch.outer(column, column)
    return torch.tensor(order), np.array(explained)


def _regress(
    target: Tensor,
    h: Tensor,
    mean: Tensor,
    covariance: Tensor,
    weight: Tensor,
    share: float,
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias that best make `target` of `h`.

    With a ridge of the share of the mean variance: what may go is not fitted to.
    """
    center = weight @ target
    cross = ((target - center) * weight[:, None]).T @ (h - mean)
    values, axes = torch.linalg.eigh(covariance)
    ridge = max(share * float(values.clamp_min(0).mean()), 1e-300)
    found = (cross @ axes / (values.clamp_min(0) + ridge)) @ axes.T
    return found, center - found @ mean


class _LayerCut(_Cut):
    """Any network whose linear layers and convolutions become products.

    How far a layer's directions matter is told by the gradients of the logits, so that
    all layers have one measure: each direction must be worth the weights it takes.
    """

    methods = ("rank",)

    def __init__(self, estimator: BaseSoftRankClassifier, rows: _Rows) -> None:
        source = copy.deepcopy(estimator.module_).cpu().double()
        self.kind = type(source)
        self.params = {
            **estimator.net_.get_params_for("module"),
            "dropout": 0.0,
            "augmentation": (),
            "random_state": 0,
        }
        self.merged, layers = _merge_norms(source)
        exact = self._build(self.merged, source.state_dict(), layers).double()
        self.state = exact.base.state_dict()
        self.uses = _uses(exact, rows)
        _, spread = _moments(rows.logits, rows.weight)
        self.variance = float(spread.trace())

    def _build(
        self,
        replaced: dict[str, tuple[int, ...]],
        state: dict[str, Tensor],
        layers: dict[str, _Affine],
    ) -> ReducedModule:
        module = ReducedModule(self.kind, self.params, replaced)
        other = {
            name: value
            for name, value in state.items()
            if name.rpartition(".")[0] not in replaced
        }
        module.base.load_state_dict(other, strict=False)
        for name, layer in layers.items():
            _set(module.base.get_submodule(name), layer)
        return module.eval()

    def whole(self) -> ReducedModule:
        return self._build(self.merged, self.state, self._of_state(self.merged))

    def _of_state(self, names: Any) -> dict[str, _Affine]:
        return {
            name: _Affine((self.state[f"{name}.weight"],), self.state[f"{name}.bias"])
            for name in names
            if f"{name}.weight" in self.state
        }

    def __call__(self, method: str | None, share: float) -> ReducedModule:
        replaced, layers = dict(self.merged), self._of_state(self.merged)
        weights = {name: self.state[f"{name}.weight"] for name in self.uses}
        # Parameters count as much as multiply-adds: early convolutions have few.
        n_weights = sum(weight.numel() for weight in weights.values())
        work = sum(weights[k].numel() * use.n_places for k, use in self.uses.items())
        for name, use in self.uses.items():
            weight = weights[name]
            n_out, n_in, *kernel = weight.shape
            size = int(np.prod(kernel))
            price = (1 / n_weights + use.n_places / work) / 2
            least = share * self.variance * price
            first = use.inputs.leading(least * (n_out * size + n_in)).T
            last = use.outputs.leading(least * (n_in * size + n_out)).T
            a, b = first.shape[1], last.shape[1]
            sizes = {
                (n_in, n_out): n_in * n_out * size,
                (n_in, b): (n_in * size + n_out) * b,
                (a, n_out): (n_in + n_out * size) * a,
            }
            if kernel:
                sizes[a, b] = n_in * a + a * b * size + b * n_out
            a, b = min(sizes, key=sizes.__getitem__)
            if (a, b) == (n_in, n_out):
                continue
            bias = self.state.get(f"{name}.bias", use.mean.new_zeros(n_out))
            factors = []
            if a < n_in:
                factors.append(use.inputs.reads @ first)
                factors[0] = factors[0].T
                back = use.inputs.writes @ first
                weight = torch.einsum("oi...,ir->or...", weight, back)
            if b < n_out:
                reads = (use.outputs.reads @ last).T
                writes = use.outputs.writes @ last
                bias = use.mean + writes @ (reads @ (bias - use.mean))
                weight = torch.einsum("ro,oi...->ri...", reads, weight)
                factors += [weight, writes]
            else:
                factors.append(weight)
            layers[name] = _Affine(tuple(factors), bias)
            rank = (a, b) if kernel else (min(a, b),)
            replaced[name] = (n_in, *rank, n_out)
        return self._build(replaced, self.state, layers)


def _merge_norms(
    module: EmbedHeadModule,
) -> tuple[dict[str, tuple[int, ...]], dict[str, _Affine]]:
    """Return what stands in place of batch normalisations and their convolutions."""
    replaced: dict[str, tuple[int, ...]] = {}
    layers: dict[str, _Affine] = {}
    for conv_name, pool, norm_name in _normalized(module):
        norm, conv = (module.get_submodule(name) for name in (norm_name, conv_name))
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        factor, offset = _affine(norm)
        # A maximum goes with a factor only where that keeps the order.
        if not isinstance(pool, nn.Identity) and not bool((factor > 0).all()):
            continue
        kernel: Any = conv.weight
        assert isinstance(kernel, Tensor)
        weight = factor[:, None] * kernel.detach().flatten(1)
        layers[conv_name] = _Affine((weight,), offset)  # Such a one has no bias.
        replaced[conv_name] = (kernel.shape[1], kernel.shape[0])
        replaced[norm_name] = ()
    return replaced, layers


def _normalized(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield convolutions, what pools, and the normalisation that follows."""
    for name, part in module.named_modules():
        if isinstance(part, _ConvBlock):
            yield f"{name}.conv", part.pool, f"{name}.norm"
        elif isinstance(part, _Patches):
            for i in range(0, len(part.stages), 4):
                stages = f"{name}.stages"
                yield f"{stages}.{i}", part.stages[i + 1], f"{stages}.{i + 2}"


@dataclass(frozen=True)
class _Side:
    """Directions of what comes to a layer, or what it gives, by decreasing worth.

    Row i of `axes` is one, of worth ``worth[i]``, in coordinates that `reads` makes of
    the layer's own, and `writes` turns back.
    """

    axes: Tensor
    worth: Tensor
    reads: Tensor
    writes: Tensor

    def leading(self, least: float) -> Tensor:
        """Return the directions, at least one, of more than so much worth."""
        return self.axes[: max(int((self.worth > least).sum()), 1)]


@dataclass(frozen=True)
class _Use:
    """What rows use of a layer, at its places."""

    n_places: int
    mean: Tensor  # (out,), of what it gives.
    inputs: _Side
    outputs: _Side


def _root(matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return the root of a positive matrix and its inverse, of what is above rounding.

    To each eigenvalue so large a share of their mean is added.
    """
    values, axes = torch.linalg.eigh(matrix)
    values = values.clamp_min(0) + floor * values.clamp_min(0).mean()
    inverse = torch.where(values > 1e-14 * values.max(), values.rsqrt(), 0.0)
    return (axes * values.sqrt()) @ axes.T, (axes * inverse) @ axes.T


def _uses(module: ReducedModule, rows: _Rows) -> dict[str, _Use]:
    """Return what each layer but the head is used for."""
    layers: dict[str, Any] = {
        name: part
        for name, part in module.base.named_modules()
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "output"
    }
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    sums: dict[str, list[Tensor]] = {}
    places: dict[str, int] = {}

    def keep(name: str, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        seen[name] = inputs[0].detach(), output

    handles = [
        part.register_forward_hook(lambda _, x, y, name=name: keep(name, x, y))
        for name, part in layers.items()
    ]
    generator = torch.Generator().manual_seed(0)
    step = 128
    for x, weight in zip(rows.x.split(step), rows.weight.split(step), strict=True):
        with torch.enable_grad():
            logits = module(x)
            # Random signs: their gradients' squares are those of all logits, summed.
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            (logits * signs).sum().backward()
        for name, (given, output) in seen.items():
            assert output.grad is not None
            parts = [given, output.detach(), output.grad]
            if not isinstance(layers[name], nn.Linear):
                parts = [part.movedim(1, -1) for part in parts]
            a, z, g = (part.reshape(len(x), -1, part.shape[-1]) for part in parts)
            places[name] = z.shape[1]
            own = [
                torch.einsum("n,npi,npj->ij", weight / a.shape[1], a, a),
                torch.einsum("n,npi->i", weight / z.shape[1], z),
                torch.einsum("n,npi,npj->ij", weight / z.shape[1], z, z),
                torch.einsum("n,npi,npj->ij", weight, g, g),
            ]
            known = sums.get(name)
            sums[name] = (
                own
                if known is None
                else [u + v for u, v in zip(known, own, strict=True)]
            )
    for handle in handles:
        handle.remove()
    found = {}
    for name, (inputs, mean, outputs, gradients) in sums.items():
        kernel = layers[name].weight.detach()[..., None].flatten(2)  # (out, in, size)
        metric = torch.einsum("oik,op,pjk->ij", kernel, gradients, kernel)
        root, inverse = _root(inputs, 0.0)
        values, axes = torch.linalg.eigh(root @ metric @ root)
        first = _Side(axes.flip(1).T, values.flip(0), inverse, root)
        root, inverse = _root(gradients, _LEAST_GRADIENT)
        spread = outputs - torch.outer(mean, mean)
        values, axes = torch.linalg.eigh(root @ spread @ root)
        last = _Side(axes.flip(1).T, values.flip(0), root, inverse)
        found[name] = _Use(places[name], mean, first, last)
    return found


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
