"""What a trained network says of rows: classes, probabilities, embeddings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.base import (
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.metrics import accuracy_score
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sksoftrank._torch import uncompiled
from sksoftrank.compression import RankCompressor
from sksoftrank.estimators._input import InputReader
from sksoftrank.estimators._sources import count_rows, is_stream
from sksoftrank.modules import MLP, EmbedHeadModule, ReducedModule
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.modules._protocol import find_layer, layer_output
from sksoftrank.training import SoftRankNet
from sksoftrank.training._batches import as_tensor
from sksoftrank.training._forward import ForwardMLP

Array = npt.NDArray[Any]
# Makes the result of rows, by a module or what stands for it.
Compute = Callable[[Any, Tensor], Tensor]


class StreamScoreMixin(ClassifierMixin):
    """Scores the rows of a stream chunk by chunk."""

    _input: InputReader

    def score(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | str | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> float:
        """Return the share of rows whose class is predicted.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows; with their labels, as in `fit`, where they come from a Dataset.
        y : array-like of shape (n_samples,) or str, default=None
            Labels, as in `fit`; an array does for a Dataset too.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        float
            Accuracy in [0, 1]; higher is better.

        Raises
        ------
        ValueError
            If a Dataset yields no labels, or no rows.
        """
        is_named = y is None or isinstance(y, str)
        if not (is_named and is_stream(X)):
            return super().score(X, y, sample_weight)
        check_is_fitted(self)
        predicted, known = [], []
        for rows, labels in self._input.open(X, y, labelled=True)():
            predicted.append(self._predict(rows))
            known.append(labels)
        if not known:
            raise _no_rows()
        return float(
            accuracy_score(
                np.concatenate(known),
                np.concatenate(predicted),
                sample_weight=sample_weight,
            )
        )


class InferenceMixin(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, StreamScoreMixin
):
    """Methods of a fitted classifier."""

    net_: SoftRankNet
    classes_: Array
    temperature_: float
    compressor_: RankCompressor
    n_components_: int
    # Rows of a forward pass: its activations stay in the cache.
    _inference_rows: int

    @property
    def module_(self) -> EmbedHeadModule:
        """The trained network."""
        try:
            network = self.__dict__["net_"].module_
        except KeyError:
            raise AttributeError(
                f"This {type(self).__name__} has no module_ before it is fitted."
            ) from None
        # torch.compile wraps a network, whose parameters stay those of the original.
        return uncompiled(network)

    def _validate_rows(self, X: Any) -> Any:
        """Return the rows as a matrix, or as what yields it in chunks."""
        return self._input.read(self, X)

    def _chunks(self, X: Any) -> Iterator[Array]:
        """Yield dense rows, as many as a forward pass should take."""
        for part in X() if callable(X) else [X]:
            for start in range(0, part.shape[0], self._inference_rows):
                chunk = part[start : start + self._inference_rows]
                yield chunk.toarray() if sparse.issparse(chunk) else chunk

    def _infer_chunks(
        self, X: Any, compute: Compute, *, in_torch: bool = False
    ) -> Iterator[Tensor]:
        """Yield what `compute` makes of the rows, on the CPU.

        In double precision where `X` is: a row's result then does not depend on which
        rows come with it, to more digits than anyone compares. What is yielded may be
        filled anew by the next chunk.
        """
        device = torch.device(self.net_.device)
        networks: dict[torch.dtype, EmbedHeadModule | ForwardMLP] = {}
        for chunk in self._chunks(X):
            x = as_tensor(chunk, double=device.type != "mps")
            if x.dtype not in networks:
                networks[x.dtype] = self._network(x.dtype, in_torch)
            network = networks[x.dtype]
            settings = _torch_settings
            if isinstance(network, ForwardMLP):
                settings = network.settings
            # Not around the whole: the caller works between two chunks.
            with settings():
                part = compute(network, x.to(device)).cpu()
            yield part

    def _network(
        self, dtype: torch.dtype, in_torch: bool
    ) -> EmbedHeadModule | ForwardMLP:
        """Return what computes the network's outputs in `dtype`."""
        module = self.module_
        on_cpu = torch.device(self.net_.device).type == "cpu"
        plain = module.base if isinstance(module, ReducedModule) else module
        if type(plain) is MLP and on_cpu and not in_torch:
            return ForwardMLP(plain, dtype)
        return copy.deepcopy(module).double() if dtype == torch.float64 else module

    def _infer(
        self,
        X: Any,
        compute: Compute,
        out: Array | None = None,
        *,
        in_torch: bool = False,
    ) -> Array:
        """Return what `compute` makes of the rows, in the dtype of `X`."""
        chunks = self._infer_chunks(X, compute, in_torch=in_torch)
        if out is not None:
            start = 0
            for part in chunks:
                stop = start + len(part)
                check_out(out, stop, part.shape[1], or_longer=True)
                out[start:stop] = part.numpy()
                start = stop
            if start == 0:
                raise _no_rows()
            return out if start == len(out) else out[:start]
        if callable(X):
            parts = [part.numpy().copy() for part in chunks]
            if not parts:
                raise _no_rows()
            return np.concatenate(parts)
        output: Any = None
        start = 0
        for part in chunks:
            if output is None:
                # In one piece: parts kept apart would cut up the memory that the
                # activations are freed to, and each chunk would fault in new pages.
                output = part.new_empty(X.shape[0], *part.shape[1:]).numpy()
            output[start : start + len(part)] = part.numpy()
            start += len(part)
        result: Array = output
        # Indices from predict stay integers, and pixels become numbers.
        return (
            result.astype(X.dtype, copy=False)
            if result.dtype.kind == X.dtype.kind == "f"
            else result
        )

    def decision_function(self, X: npt.ArrayLike) -> Array:
        """Return the logits over the temperature the network was trained at.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            What the softmax turns into probabilities; for two classes the difference
            in favour of ``classes_[1]``.
        """
        check_is_fitted(self)
        temperature = self.temperature_
        scores = self._infer(
            self._validate_rows(X), lambda module, x: _finite(module(x)) / temperature
        )
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: npt.ArrayLike) -> Array:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Elements of ``classes_``.
        """
        check_is_fitted(self)
        return self._predict(self._validate_rows(X))

    def _predict(self, X: Any) -> Array:
        codes = self._infer(X, lambda module, x: _finite(module(x)).argmax(dim=1))
        return self.classes_[codes]

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Return ``softmax(logits / temperature_)``.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``.
        """
        check_is_fitted(self)
        return self._probabilities(self._validate_rows(X))

    def _probabilities(self, X: Any) -> Array:
        temperature = self.temperature_
        return self._infer(
            X, lambda module, x: _softmax_(_finite(module(x)), temperature)
        )

    def predict_log_proba(self, X: npt.ArrayLike) -> Array:
        """Return the logarithm of `predict_proba`, without its underflow.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, in the order of ``classes_``.
        """
        check_is_fitted(self)
        temperature = self.temperature_
        return self._infer(
            self._validate_rows(X),
            lambda module, x: torch.log_softmax(
                _finite(module(x)) / temperature, dim=1
            ),
        )

    def embed(self, X: npt.ArrayLike, *, layer: str | None = None) -> Array:
        """Return the full penultimate representation, or that of another layer.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.
        layer : str, default=None
            Name of a submodule, such as "blocks.3"; None takes what the head turns
            into logits.

        Returns
        -------
        ndarray of shape (n_samples, d) or (n_samples, ...)
            The penultimate representation, or the layer's output in its own shape.

        Raises
        ------
        ValueError
            If the network has no such layer, or does not run it.
        """
        check_is_fitted(self)
        if layer is not None:
            find_layer(self.module_, layer)
            return self._infer(
                self._validate_rows(X),
                lambda module, x: layer_output(module, layer, x),
                in_torch=True,
            )
        return self._embed(self._validate_rows(X))

    def _embed(self, X: Any) -> Array:
        return self._infer(X, lambda module, x: _finite(module.embed(x)))

    # Where to write is no property of the rows.
    __metadata_request__transform = {"out": UNUSED}  # noqa: RUF012

    def transform(self, X: npt.ArrayLike, out: Array | None = None) -> Array:
        """Return the embedding, projected on its leading directions.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.
        out : ndarray of shape (n_samples, n_components_), default=None
            Where to write, chunk by chunk, such as a memory map. May be longer where
            `X` can't tell how many rows it has.

        Returns
        -------
        ndarray of shape (n_samples, n_components_)
            Coordinates along ``compressor_.components_``, in the dtype of `X`; `out`,
            or what was written of it, where it is given.

        Raises
        ------
        ValueError
            If `out` can't take the result.
        """
        check_is_fitted(self)
        rows = self._validate_rows(X)
        if out is not None:
            n_rows = count_rows(X) if callable(rows) else rows.shape[0]
            check_out(out, n_rows or 0, self.n_components_, or_longer=n_rows is None)
        return self._infer(rows, self._projection(), out)

    def iter_transform(self, X: npt.ArrayLike) -> Iterator[Array]:
        """Transform the rows chunk by chunk.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        iterator over ndarray of shape (n_chunk, n_components_)
            Coordinates of the next rows along ``compressor_.components_``.
        """
        check_is_fitted(self)
        rows, project = self._validate_rows(X), self._projection()
        return (part.numpy() for part in self._infer_chunks(rows, project))

    def _projection(self) -> Compute:
        basis = self.compressor_.components_.T
        mean = self.compressor_.mean_

        def project(module: EmbedHeadModule | ForwardMLP, x: Tensor) -> Tensor:
            z = _finite(module.embed(x))
            if isinstance(module, ForwardMLP):
                Z = z.numpy()
                projected = Z @ basis.astype(Z.dtype, copy=False)
                projected -= (mean @ basis).astype(Z.dtype, copy=False)
                return torch.from_numpy(projected)
            # Copies into torch's memory, whose alignment the last digits depend on.
            axes = torch.tensor(basis)
            offset = -torch.tensor(mean) @ axes
            return torch.addmm(offset.to(z), z, axes.to(z))

        return project


def check_out(
    out: Any, n_rows: int, n_columns: int, *, or_longer: bool = False
) -> None:
    """Refuse what rows can't be written to."""
    if (
        not isinstance(out, np.ndarray)
        or out.dtype.kind != "f"
        or out.ndim != 2
        or (len(out) < n_rows if or_longer else len(out) != n_rows)
        or out.shape[1] != n_columns
        or not out.flags.writeable
    ):
        raise ValueError(
            f"out must be a writeable array of floats of shape {(n_rows, n_columns)}"
            f"{' or longer' if or_longer else ''}, got "
            f"{getattr(out, 'dtype', type(out).__name__)} of shape "
            f"{getattr(out, 'shape', None)}. Make it with n_components_ columns."
        )


@contextmanager
def _torch_settings() -> Iterator[None]:
    with torch_defaults(), torch.inference_mode():
        yield


def _no_rows() -> ValueError:
    return ValueError(
        "X must yield at least one row, got none. Check where it reads from."
    )


def _finite(outputs: Tensor) -> Tensor:
    """Return what a network makes of rows, unless that overflows."""
    # A sum is several times as fast, and where it is finite all is.
    if not (math.isfinite(outputs.sum().item()) or outputs.isfinite().all()):
        kind = str(outputs.dtype).removeprefix("torch.")
        raise ValueError(
            f"X must hold numbers of which the network makes finite ones in {kind}, "
            "but some are too large. Scale X like the rows that it was trained on, or "
            "pass float64."
        )
    return outputs


def _softmax_(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits (n, c) into probabilities in place.

    Several times as fast as torch's own softmax, which takes short rows one by one.
    """
    logits -= logits.amax(dim=1, keepdim=True)
    logits.div_(temperature).exp_()
    return logits.div_(logits.sum(dim=1, keepdim=True))
