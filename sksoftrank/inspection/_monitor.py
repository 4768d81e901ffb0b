"""Rank and collapse of a network while it trains."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skorch.callbacks import Callback
from skorch.utils import to_tensor
from torch import Tensor
from torch.utils.data import Subset

from sksoftrank._torch import uncompiled
from sksoftrank.collapse import within_class_variability
from sksoftrank.rank import effective_rank
from sksoftrank.training import StreamDataset, make_batches
from sksoftrank.training._batches import as_tensor
from sksoftrank.training._stream import sample_stream

# A measurement costs about as much as ten steps of a small network, and less than that
# of a large one: so many steps between two keep it below a twentieth of the time.
_STEPS_BETWEEN = 200
_MEASURES = ("logit_norm", "effective_rank", "within_class_variability")


class RankMonitor(Callback):
    """Record rank and collapse while a network trains; a callback.

    The history of each epoch gets ``logit_norm``, the mean norm of the logits of some
    rows; ``effective_rank`` of their embedding, centred; and its
    ``within_class_variability`` (NC1). All are NaN after epochs that aren't measured.
    Training goes as it would without: also in a stack, and to the same weights.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...), default=None
        Rows to measure on, as the network itself takes them. None draws some of those
        that it trains on.
    y : array-like of shape (n_samples,), default=None
        Class codes of `X`.
    every : int, default=None
        Epochs from one measurement to the next; the last epoch is measured in any case.
        None takes as many as make 200 steps, for under a twentieth of the training's
        time.
    max_rows : int, default=256
        Most rows to draw, at least two. The rank is at most their number.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.inspection import RankMonitor
    >>> X, y = load_iris(return_X_y=True)
    >>> monitor = RankMonitor(every=5)
    >>> clf = SoftRankMLPClassifier(
    ...     max_epochs=10, temperature=10.0, callbacks=[monitor], random_state=0
    ... )
    >>> ranks = [epoch["effective_rank"] for epoch in clf.fit(X, y).history_]
    >>> [epoch for epoch, rank in enumerate(ranks, start=1) if rank == rank]
    [5, 10]
    """

    def __init__(
        self,
        X: npt.ArrayLike | None = None,
        y: npt.ArrayLike | None = None,
        *,
        every: int | None = None,
        max_rows: int = 256,
    ) -> None:
        self.X = X
        self.y = y
        self.every = every
        self.max_rows = max_rows

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Check the parameters."""
        every = 1 if self.every is None else self.every
        for name, value, least in (
            ("every", every, 1),
            ("max_rows", self.max_rows, 2),
        ):
            if not isinstance(value, Integral) or int(value) < least:
                raise ValueError(
                    f"{name} of RankMonitor must be an int of at least {least}, got "
                    f"{value!r}. Leave it out for the default."
                )
        module = uncompiled(net.module_)
        if not (hasattr(module, "embed") and hasattr(module, "head")):
            raise ValueError(
                "RankMonitor needs a module with embed(x) and head(z), got "
                f"{type(module).__name__}. Write the two methods, or use "
                "SoftRankClassifier, which finds them."
            )
        self.rows_: tuple[Any, npt.NDArray[Any]] | None = None
        if self.X is None and self.y is None:
            return
        rows, codes = np.asarray(self.X), np.asarray(self.y)
        if codes.ndim != 1 or rows.shape[:1] != codes.shape or len(set(codes)) < 2:
            raise ValueError(
                "RankMonitor needs X and class codes y of as many rows, of two classes "
                f"at least, got shapes {rows.shape} and {codes.shape}. Pass both, or "
                "neither."
            )
        self.rows_ = as_tensor(rows), codes

    def on_epoch_end(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **_: Any
    ) -> None:
        """Add to the history of the epoch."""
        epoch = len(net.history)
        is_due = epoch % self._period(net, dataset_train) == 0
        values = dict.fromkeys(_MEASURES, math.nan)
        if is_due or epoch == net.max_epochs:
            values = self._measure(net, dataset_train)
        for name, value in values.items():
            net.history.record(name, value)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Let the rows go."""
        self.rows_ = None

    def _period(self, net: Any, dataset: Any) -> int:
        if self.every is not None:
            return self.every
        n_rows = len(dataset) if hasattr(dataset, "__len__") else math.inf
        n_steps = n_rows / net.batch_size if net.batch_size > 0 else 1.0
        return math.ceil(_STEPS_BETWEEN / n_steps) if n_steps else 1

    def _measure(self, net: Any, dataset: Any) -> dict[str, float]:
        if self.rows_ is None:
            self.rows_ = self._draw(dataset)
        rows, codes = self.rows_
        module = uncompiled(net.module_).eval()
        with torch.no_grad():
            z = module.embed(to_tensor(rows, net.device))
            norms = torch.linalg.vector_norm(module.head(z), dim=1)
        Z = z.cpu().double().numpy()
        has_classes = len(np.unique(codes)) > 1
        return {
            "logit_norm": float(norms.mean()),
            "effective_rank": effective_rank(Z, center=True),
            "within_class_variability": within_class_variability(Z, codes)
            if has_classes
            else math.nan,
        }

    def _draw(self, dataset: Any) -> tuple[Tensor, npt.NDArray[Any]]:
        """Return some of the rows to train on, and their codes."""
        if isinstance(dataset, StreamDataset):
            X, codes = sample_stream(dataset.chunks(), self.max_rows, 0)
            return as_tensor(X), codes
        index = np.arange(len(dataset))
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, np.asarray(dataset.indices)
        if len(index) > self.max_rows:
            rng = np.random.default_rng(0)
            index = np.sort(rng.choice(index, self.max_rows, replace=False))
        batches = make_batches(Subset(dataset, index.tolist()), self.max_rows)
        x, target = next(iter(batches))
        is_weighted = isinstance(target, tuple | list)
        return x, np.asarray(target[0] if is_weighted else target)
