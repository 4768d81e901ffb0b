"""What each layer of a fitted network makes of rows: ranks, probes, alignment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import check_cv, cross_val_score
from sklearn.utils.validation import (
    check_is_fitted,
)
from torch import Tensor, nn

from sksoftrank._checks import as_labels, naming
from sksoftrank.collapse import class_separation
from sksoftrank.estimators import BaseSoftRankClassifier
from sksoftrank.modules import EmbedHeadModule, Transformer
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.modules._protocol import (
    find_layer,
    has_rows,
    layer_outputs,
    record_layers,
)
from sksoftrank.ood._calibration import encode
from sksoftrank.ood._probe import make_probe
from sksoftrank.rank import rank_report, singular_values, subspace_alignment

Array = npt.NDArray[Any]
Labelled = tuple[npt.ArrayLike, npt.ArrayLike]
# Of an image's places, or a row's tokens, that its ranks are taken over: neighbours are
# alike, and all of them would not fit in memory.
_N_PLACES = 16


@dataclass(frozen=True)
class _Layer:
    """A layer's name, and the part of it that takes what the layer before gives."""

    name: str
    first: nn.Module | None


@dataclass(frozen=True)
class _View:
    """What a layer gives for n rows: (n, d), and at places of each (n, places, d)."""

    rows: Array
    places: Array | None


def rank_profile(
    estimator: BaseSoftRankClassifier,
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    layers: Sequence[str] | None = None,
    domains: Mapping[str, Labelled] | None = None,
    transfer: Mapping[str, Labelled] | None = None,
    tolerances: Sequence[float] = (1e-1, 1e-2, 1e-3),
    cv: Any = 3,
) -> list[dict[str, Any]]:
    """Measure each layer of a fitted network: its ranks, and what it can tell.

    A layer of images, signals or tokens is seen by rows, as the mean over its places,
    and by places: up to 16 of each row, spread evenly, as rows of their own.

    Parameters
    ----------
    estimator : fitted classifier
        One of the package's with a single network.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Rows in distribution, better not those trained on. A rank is at most their
        number; a thousand do.
    y : array-like of shape (n_samples,)
        Their labels, of all the classes that the network knows.
    layers : sequence of str, default=None
        Names of submodules, from the input on. None takes the hidden layers: each part
        of the network with weights, up to the normalisation and activation that follow
        it in a Sequential. The embedding, where it is none of them, and the logits come
        after.
    domains : mapping of str to tuple (X, y), default=None
        Rows of the same classes elsewhere. Probes trained on all of `X` are scored on
        them.
    transfer : mapping of str to tuple (X, y), default=None
        Rows with other labels, of new classes or of `X` itself, for probes of their
        own.
    tolerances : sequence of float, default=(0.1, 0.01, 0.001)
        In (0, 1). Tolerances of the numerical rank.
    cv : int or cross-validation splitter, default=3
        Folds that probes are scored over, for `X` and for `transfer`.

    Returns
    -------
    list of dict
        One record a layer, from the input on: ``layer``, its name; everything of
        :func:`sksoftrank.rank.rank_report` for its centred rows, and their
        ``singular_values``; ``places``, a dictionary of the same, None where there is
        one place. ``alignment`` of the layer's leading directions, one fewer than
        there are classes, with those that the weight of the next layer takes, as
        :func:`sksoftrank.rank.subspace_alignment` has it, over places where the weight
        is applied to each; NaN where no weight takes the layer's columns (a
        normalisation on the way is left out). ``attention_entropy``, of a
        transformer's block, is the mean entropy of its attention over that of equal
        weights, in [0, 1]; else NaN. ``class_separation`` of the rows. Accuracies of
        a logistic regression on standardised columns: ``probe_accuracy`` over the
        folds, and dictionaries by name, ``domain_accuracy`` and ``transfer_accuracy``.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    ValueError
        If rows or labels are not such as described, there is no such layer, or a
        tolerance is out of range: before anything is computed.

    References
    ----------
    Alain and Bengio (2016), arXiv:1610.01644, for probes; Masarczyk et al. (2023), "The
    tunnel effect", NeurIPS, for ranks and probes by layer; Ji and Telgarsky (2019),
    ICLR, for alignment.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.inspection import rank_profile
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = SoftRankMLPClassifier((64, 32), max_epochs=10, random_state=0)
    >>> profile = rank_profile(clf.fit(X / 16, y), X[:500] / 16, y[:500])
    >>> [record["n_features"] for record in profile]
    [64, 32, 10]
    >>> profile[0]["effective_rank"] > profile[-1]["effective_rank"]
    True
    """
    _check(estimator, tolerances)
    rows, labels = _read(estimator, X, y, "X", "y")
    encode("y", labels, estimator.classes_)
    absent = np.setdiff1d(estimator.classes_, labels)
    if absent.size:
        raise ValueError(
            "y must hold all classes that the network knows, got no row of "
            f"{absent.tolist()}. Pass rows of those too."
        )
    _check_folds(cv, labels, "y")
    elsewhere, others = (
        {
            name: _read(estimator, *pair, f"X of {kind}[{name!r}]", f"{kind}[{name!r}]")
            for name, pair in (given or {}).items()
        }
        for kind, given in (("domains", domains), ("transfer", transfer))
    )
    for name, (_, own) in elsewhere.items():
        encode(f"domains[{name!r}]", own, estimator.classes_)
    for name, (_, own) in others.items():
        _check_folds(cv, own, f"transfer[{name!r}]")
    chosen = _choose_layers(estimator, rows, layers)

    views = _views(estimator, rows, chosen)
    chosen = _complete(chosen, views)
    domain_views = {k: _views(estimator, X, chosen) for k, (X, _) in elsewhere.items()}
    other_views = {k: _views(estimator, X, chosen) for k, (X, _) in others.items()}
    alignments = _alignments(estimator, chosen, views)
    entropies = _attention_entropies(estimator, rows)
    records = []
    for layer in (layer.name for layer in chosen):
        Z, places = views[layer].rows, views[layer].places
        probe = make_probe().fit(Z, labels)
        records.append(
            {
                "layer": layer,
                **_ranks(Z, tolerances),
                "places": None
                if places is None
                else _ranks(places.reshape(-1, places.shape[2]), tolerances),
                "alignment": alignments.get(layer, float("nan")),
                "attention_entropy": entropies.get(layer, float("nan")),
                "class_separation": class_separation(Z, labels),
                "probe_accuracy": _probe_accuracy(Z, labels, cv),
                "domain_accuracy": {
                    name: float(probe.score(domain_views[name][layer].rows, own))
                    for name, (_, own) in elsewhere.items()
                },
                "transfer_accuracy": {
                    name: _probe_accuracy(other_views[name][layer].rows, own, cv)
                    for name, (_, own) in others.items()
                },
            }
        )
    return records


def effective_depth(profile: Sequence[Mapping[str, Any]], share: float = 0.99) -> int:
    """Return how many layers it takes to tell what the last one can.

    The first layer whose probe reaches a share of the last one's accuracy. Those that
    follow are a tunnel: they compress what is linearly separable already.

    Parameters
    ----------
    profile : list of dict
        From `rank_profile`.
    share : float, default=0.99
        In (0, 1].

    Returns
    -------
    int
        From 1, the first layer of the profile, to their number.

    Raises
    ------
    ValueError
        If the profile is empty, or `share` out of range.

    References
    ----------
    Masarczyk et al. (2023), "The tunnel effect: building data representations in deep
    neural networks", NeurIPS.

    Examples
    --------
    >>> from sksoftrank.inspection import effective_depth
    >>> effective_depth([{"probe_accuracy": p} for p in (0.5, 0.9, 0.89, 0.9)])
    2
    """
    if not isinstance(share, Real) or not 0.0 < share <= 1.0:
        raise ValueError(
            f"share must be in (0, 1], got {share!r}. Use 0.99 for 99 % of the last "
            "layer's accuracy."
        )
    with naming(profile, "profile", expected="the records that rank_profile returns"):
        try:
            accuracy = [record["probe_accuracy"] for record in profile]
        except LookupError as error:
            raise ValueError(f"no record: {error}") from error
    if not accuracy:
        raise ValueError(
            "profile must hold at least one layer, got none. Pass what rank_profile "
            "returns."
        )
    enough = share * accuracy[-1]
    return next(i for i, own in enumerate(accuracy, start=1) if own >= enough)


# -- What comes in -------------------------------------------------------------------


def _check(estimator: Any, tolerances: Any) -> None:
    if not isinstance(estimator, BaseSoftRankClassifier):
        raise ValueError(
            "estimator must be a classifier of this package with a single network, got "
            f"{type(estimator).__name__}. Pass the last step of a pipeline, or a member"
            " of an ensemble."
        )
    check_is_fitted(estimator)
    values = np.atleast_1d(np.asarray(tolerances, dtype=object))
    if not values.size or not all(
        isinstance(value, Real) and 0.0 < float(value) < 1.0 for value in values
    ):
        raise ValueError(
            "tolerances must be numbers in (0, 1), shares of the largest singular "
            f"value, got {tolerances!r}. Use e.g. (0.01, 0.001)."
        )


def _read(
    estimator: BaseSoftRankClassifier, X: Any, y: Any, name_X: str, name_y: str
) -> tuple[Any, Array]:
    """Return rows as the network takes them, and their labels."""
    rows = estimator._validate_rows(X)
    if callable(rows):
        raise ValueError(
            f"{name_X} must be an array, got {type(X).__name__}. Pass some thousand "
            "rows, whose layers are held at once."
        )
    return rows, as_labels(name_y, y, rows.shape[0])


def _check_folds(cv: Any, labels: Array, name: str) -> None:
    if isinstance(cv, Integral):
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2 or counts.min() < cv:
            raise ValueError(
                f"{name} must hold at least two classes, of at least cv={cv} rows each,"
                f" got {dict(zip(classes.tolist(), counts.tolist(), strict=True))}. "
                "Pass more rows of each, or lower cv."
            )
    # It refuses anything else that is not one, and less than two folds.
    check_cv(cv, labels, classifier=True).get_n_splits(labels, labels, labels)


# -- Layers --------------------------------------------------------------------------


def _choose_layers(
    estimator: BaseSoftRankClassifier, rows: Any, names: Sequence[str] | None
) -> list[_Layer]:
    """Return the layers to look at, tried on two rows."""
    module = estimator.module_
    if names is not None:
        if isinstance(names, str) or not len(names):
            raise ValueError(
                f"layers must be a sequence of names, got {names!r}. Use None for all "
                "hidden layers."
            )
        chosen = [_Layer(name, find_layer(module, name)) for name in names]
        _run(estimator, rows[:2], lambda m, x: [*layer_outputs(m, names, x)])
        return chosen
    groups = [*_groups(module.network, "")]
    every = [name for _, followers in groups for name in followers]
    chosen = []

    def choose(own: EmbedHeadModule, x: Tensor) -> list[Tensor]:
        found = record_layers(own, every, x)
        for first, followers in groups:
            outputs = [(n, found[n]) for n in followers if has_rows(found.get(n), x)]
            # Without those that pool or flatten it, or do nothing, as dropout does.
            same = [(n, z) for n, z in outputs if z.shape == outputs[0][1].shape]
            if same and same[0][1].ndim > 1:
                name = next(n for n, z in same if torch.equal(z, same[-1][1]))
                chosen.append(_Layer(name, first))
        return []

    _run(estimator, rows[:2], choose)
    return chosen


def _groups(parent: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield each part of a network that has weights, its name and those that follow.

    What follows in a Sequential without weights of its own, such as an activation, is
    of the same layer.
    """
    group: tuple[nn.Module, list[str]] | None = None
    for name, child in parent.named_children():
        is_list = isinstance(child, nn.Sequential | nn.ModuleList)
        if is_list or any(p.ndim > 1 for p in child.parameters()):
            if group is not None:
                yield group
            group = None if is_list else (child, [prefix + name])
            if is_list:
                yield from _groups(child, f"{prefix}{name}.")
        elif group is not None and isinstance(parent, nn.Sequential):
            group[1].append(prefix + name)
    if group is not None:
        yield group


def _run(estimator: BaseSoftRankClassifier, rows: Any, compute: Any) -> list[Array]:
    """Return what `compute` gives for rows, a list of tensors (n, ...), as arrays."""
    shapes: list[tuple[int, ...]] = []

    def flat(module: EmbedHeadModule, x: Tensor) -> Tensor:
        parts = compute(module, x)
        shapes[:] = [tuple(part.shape[1:]) for part in parts]
        # One tensor a chunk, for one pass over the rows.
        return torch.cat([part.flatten(1) for part in parts] or [x[:, :0]], dim=1)

    values = estimator._infer(rows, flat, in_torch=True).astype(np.float64, copy=False)
    stops = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(values, stops, axis=1)[: len(shapes)]
    return [
        part.reshape(len(values), *shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _views(
    estimator: BaseSoftRankClassifier, rows: Any, layers: Sequence[_Layer]
) -> dict[str, _View]:
    """Return what the layers, the embedding and the logits are for rows."""
    module = estimator.module_
    names = [layer.name for layer in layers if layer.first is not None]
    is_signal = any(isinstance(part, nn.Conv1d) for part in module.modules())

    def compute(own: EmbedHeadModule, x: Tensor) -> list[Tensor]:
        parts = []
        for z in layer_outputs(own, names, x):
            if z.ndim > 2:
                # Columns are the channels of images and signals, and last of tokens.
                z = z.movedim(1, -1) if z.ndim > 3 or is_signal else z
                z = z.flatten(1, -2)
                n_places = min(z.shape[1], _N_PLACES)
                places = torch.linspace(0, z.shape[1] - 1, n_places).round().long()
                parts += [z.mean(dim=1), z[:, places.to(z.device)]]
            else:
                parts += [z.reshape(len(x), -1), z.new_empty(len(x), 0)]
        z = own.embed(x)
        return [*parts, z, own.head(z)]

    *parts, Z, logits = _run(estimator, rows, compute)
    views = {
        name: _View(own, places if places.ndim > 2 and places.shape[1] > 1 else None)
        for name, own, places in zip(names, parts[::2], parts[1::2], strict=True)
    }
    return views | {"embedding": _View(Z, None), "logits": _View(logits, None)}


def _complete(layers: Sequence[_Layer], views: Mapping[str, _View]) -> list[_Layer]:
    """Add the embedding and the logits, which a layer may be already."""

    def is_twice(name: str, other: str) -> bool:
        a, b = views[name].rows, views[other].rows
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-6)

    kept = [layer for layer in layers if not is_twice(layer.name, "logits")]
    if not any(is_twice(layer.name, "embedding") for layer in kept):
        kept.append(_Layer("embedding", None))
    return [*kept, _Layer("logits", None)]


# -- Measures of a layer -------------------------------------------------------------


def _ranks(Z: Array, tolerances: Sequence[float]) -> dict[str, Any]:
    report = rank_report(Z, tols=tolerances)
    return {**report, "singular_values": singular_values(Z, center=True)}


def _probe_accuracy(Z: Array, labels: Array, cv: Any) -> float:
    scores = cross_val_score(make_probe(), Z, labels, cv=cv, error_score="raise")
    return float(scores.mean())


def _alignments(
    estimator: BaseSoftRankClassifier,
    layers: Sequence[_Layer],
    views: Mapping[str, _View],
) -> dict[str, float]:
    """Return how far each layer's directions are those that the next one takes."""
    n_directions = len(estimator.classes_) - 1
    found = {}
    for layer, following in pairwise(layers):
        view = views[layer.name]
        Z, width = view.rows, view.rows.shape[1]
        if following.name == "logits":
            weight = _head_weight(estimator)
        else:
            own = following.first.parameters() if following.first is not None else ()
            first = next((p.detach() for p in own if p.ndim > 1), None)
            if first is None:
                continue
            # From (out, in, ...), with the sides of a convolution.
            weight = first.double().movedim(1, -1).flatten(0, -2).cpu().numpy()
            if view.places is not None:
                Z = view.places.reshape(-1, width)
        if weight.shape[1] == width:
            k = min(n_directions, width)
            found[layer.name] = subspace_alignment(Z - Z.mean(axis=0), weight, k)
    return found


def _head_weight(estimator: BaseSoftRankClassifier) -> Array:
    """Return the weight (n_classes, d) of the head, which is affine."""
    with torch_defaults(), torch.inference_mode():
        head = estimator._head()
        eye = torch.eye(estimator.module_.embedding_width, dtype=torch.float64)
        return (head(eye) - head(0 * eye)).T.numpy()


def _attention_entropies(
    estimator: BaseSoftRankClassifier, rows: Any
) -> dict[str, float]:
    """Return the mean entropy of each block's attention, over the largest."""
    if not isinstance(estimator.module_, Transformer):
        return {}

    def compute(module: Any, x: Tensor) -> list[Tensor]:
        entropies = []
        for p in module.attention(x):  # (n, heads, tokens, tokens)
            mean = torch.special.entr(p).sum(dim=-1).mean(dim=(1, 2))
            entropies.append(mean[:, None] / np.log(p.shape[-1]))
        return entropies

    means = [float(part.mean()) for part in _run(estimator, rows, compute)]
    return {f"blocks.{index}": mean for index, mean in enumerate(means)}
