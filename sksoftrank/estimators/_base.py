"""What all classifiers share: the scikit-learn contract around a `SoftRankNet`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import _fit_context, clone
from sklearn.utils import Tags, compute_class_weight
from sklearn.utils._param_validation import validate_parameter_constraints
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
)
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)
from skorch.callbacks import EarlyStopping
from torch import Tensor

from sksoftrank.compression import RankCompressor
from sksoftrank.estimators._data import (
    FloatArray,
    Rows,
    check_range,
    encode,
    make_dataset,
    merge_duplicates,
    sample_rows,
    split_validation,
)
from sksoftrank.estimators._inference import DTYPES, Inference
from sksoftrank.estimators._sources import (
    as_frame,
    is_arrow,
    is_stream,
    open_stream,
)
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.rank import count_above
from sksoftrank.training import SoftRankNet, StreamDataset, fit_nets

Array = npt.NDArray[Any]
# Of so few rows, or of no more than a batch, equal ones are merged: a weight is then
# repetition to the last bit, and not only over many steps.
MERGED_ROWS = 64
# rank_ counts the singular values above this share of the largest.
RANK_TOL = 1e-2


class BaseSoftRankClassifier(Inference):
    """Base of the classifiers; a subclass adds the parameters of its module."""

    # -- Training ------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | str | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train the network on `X` and `y`, then find the basis of its embedding.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Training rows. C-contiguous arrays of floats or of uint8, memory maps
            included, are used where they lie. A torch Dataset of pairs (row, label), or
            an Arrow dataset or table with the name of a column as `y`, is read in
            passes and never held whole: one pass checks it, one for each epoch trains,
            and one more finds the basis. An Arrow table with an array as `y` is held in
            memory like a frame.
        y : array-like of shape (n_samples,) or str, default=None
            Labels, of any type that scikit-learn takes for classes; the name of their
            column where `X` is an Arrow dataset, None where it is a torch Dataset.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        Self
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters or data that can't be trained on, before any training.
        FloatingPointError
            At the training step whose loss is not finite.
        """
        with self._unchanged_on_error():
            training = self._prepare(X, y, sample_weight)
            (error,) = fit_nets([training.net], [training.dataset])
            if error is not None:
                raise error
            if training.net.was_interrupted_:
                training.net.warn_of_interruption()
            self._complete(training)
        return self

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validated: dict[tuple[int, int], Any] | None = None,
    ) -> Training:
        """Check the data and parameters of a fit, and return what is to be trained.

        Fits of the same `X` and `y` share the arrays made of them in `validated`.
        """
        width_before = getattr(self, "n_features_in_", None)
        if is_stream(X, y):
            dataset: Rows | StreamDataset = self._open_training(X, y, sample_weight)
            valid_dataset = None
            seeds = self._draw_seeds()
        else:
            rows = self._read_training(X, y, sample_weight, validated)
            # After the checks: a random state of the user's is left alone by an error.
            seeds = self._draw_seeds()
            train = valid = valid_dataset = None
            if self.early_stopping:
                train, valid = split_validation(
                    rows[1], self.validation_fraction, seeds["split"]
                )
                valid_dataset = make_dataset(*rows, valid)
            dataset = make_dataset(*rows, train)
            self._check_batches(len(dataset))
        if self._goes_on and self.n_features_in_ != width_before:
            raise ValueError(
                f"warm_start=True needs the {width_before} columns of the previous "
                f"fit, got {self.n_features_in_}. Pass those, or set warm_start=False "
                "to start anew."
            )
        net = self._make_net(seeds, self.max_epochs, valid_dataset)
        self._initialize(net)
        if self._goes_on:
            self._load_weights(net)
        return Training(net, dataset, seeds["rows"])

    def _read_training(
        self,
        X: Any,
        y: Any,
        sample_weight: npt.ArrayLike | None,
        validated: dict[tuple[int, int], Any] | None,
    ) -> tuple[Any, npt.NDArray[np.int64], FloatArray | None]:
        """Return rows, codes and weights; set the classes."""
        key = (id(X), id(y))
        if validated is not None and key in validated:
            # Converted once for all fits of a stack; the columns' names are each one's.
            validate_data(self, X, reset=True, skip_check_array=True)
            X, labels = validated[key]
        else:
            X, labels = self._validate_training_data(X, y, reset=True)
            if validated is not None:
                validated[key] = (X, labels)
        classes, codes = np.unique(labels, return_inverse=True)
        self._set_classes(classes)
        self._check_settings(X.shape[0])
        return self._weigh(X, codes.astype(np.int64, copy=False), sample_weight)

    def _open_training(
        self, X: Any, target: Any, sample_weight: Any, classes: Array | None = None
    ) -> StreamDataset:
        """Return a stream as a dataset, after a pass that checks it; set the classes.

        `classes` are those of a fit before.
        """
        if sample_weight is not None:
            raise ValueError(
                "sample_weight must be None where X is a Dataset, got "
                f"{type(sample_weight).__name__}. Use class_weight, or arrays."
            )
        if self.early_stopping:
            raise ValueError(
                "early_stopping must be False where X is a Dataset, whose rows can't "
                "be held out, got True. Set max_epochs, or use arrays."
            )
        if is_arrow(X) and target is None:
            raise ValueError(
                "y must be the name of the labels' column where X is an Arrow dataset, "
                f"got None. Name one of {X.schema.names}, or pass a Table and an array."
            )
        is_new = classes is None or not hasattr(self, "net_")
        chunks = open_stream(X, target) if is_new else self._open(X, target)
        counts: dict[Any, int] = {}
        for rows, labels in chunks():
            if labels is None:
                raise ValueError(
                    "X must yield pairs (row, label), got rows alone. Yield pairs."
                )
            if is_new and not counts:
                self._take_names(X, target)
                self._take_shape(rows.shape[1:])
            check_range(self._check_chunk(rows))
            values, numbers = _count_labels(labels)
            for label, number in zip(values, numbers.tolist(), strict=True):
                counts[label] = counts.get(label, 0) + number
        if not counts:
            raise ValueError(
                "X must yield at least one row, got none. Check where it reads from."
            )
        n_rows = sum(counts.values())
        try:
            seen = np.array(sorted(counts))
        except TypeError as error:
            raise ValueError(
                "X must yield labels of one type, got "
                f"{sorted({type(label).__name__ for label in counts})}. Convert them."
            ) from error
        if classes is None:
            self._set_classes(seen)
        else:
            encode(seen, classes)
        self._check_settings(n_rows)
        known, by_class = self.classes_, None
        if self.class_weight is not None:
            weights = np.array([float(counts[label]) for label in sorted(counts)])
            by_class = compute_class_weight(
                self.class_weight, classes=known, y=seen, sample_weight=weights
            )
            total = by_class[encode(seen, known)] @ weights
            if total == 0:
                raise self._all_weightless()
            by_class = by_class * n_rows / total
        return StreamDataset(
            lambda: (
                (self._check_chunk(rows), encode(np.asarray(labels), known))
                for rows, labels in chunks()
            ),
            n_rows,
            by_class,
        )

    def _take_names(self, X: Any, target: Any) -> None:
        """Take note of the names of a stream's columns, as `fit` of an array does."""
        if is_arrow(X):
            names = [name for name in X.schema.names if name != target]
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _take_shape(self, shape: tuple[int, ...]) -> None:
        """Take note of the shape of a stream's rows."""
        self.n_features_in_ = int(np.prod(shape))

    def _set_classes(self, classes: Array) -> None:
        if len(classes) < 2:
            raise ValueError(
                "y must hold at least two classes, got one class, "
                f"{classes.tolist()[0]!r}. Add rows of another."
            )
        if self._goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start=True needs the classes of the previous fit, "
                f"{self.classes_.tolist()}, got {classes.tolist()}. Set "
                "warm_start=False to start anew."
            )
        self.classes_ = classes

    @property
    def _goes_on(self) -> bool:
        """Whether `fit` starts from the weights of the previous fit."""
        return bool(self.warm_start) and hasattr(self, "net_")

    def _complete(self, training: Training, *, compress: bool = True) -> None:
        """Set the fitted attributes once the network is trained."""
        self._finish(training.net, history=[])
        if compress:
            self._find_basis(training.dataset, training.seed)
        self._is_incremental = False

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | str | None = None,
        classes: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train one epoch on `X` and `y`, going on from where the network is.

        The learning rate is constant and a temperature schedule stays at its last
        value, since the number of calls is not known. The basis of the embedding is
        found anew from these rows. The optimizer's state lives from call to call, but
        not in a pickle.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Training rows, as in `fit`.
        y : array-like of shape (n_samples,) or str, default=None
            Labels, as in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; required at the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        Self
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters or data that can't be trained on, before any training.
        FloatingPointError
            At the training step whose loss is not finite; the network is then as it
            was before the call.
        """
        with self._unchanged_on_error() as before:
            if isinstance(self.class_weight, str):
                raise ValueError(
                    "class_weight='balanced' can't be known from a part of the rows, "
                    "as partial_fit sees them. Pass a dictionary of weights."
                )
            if self.early_stopping:
                raise ValueError(
                    "early_stopping must be False in partial_fit, which trains one "
                    "epoch a call, got True. Set it to False, or use fit."
                )
            fitted = hasattr(self, "net_")
            _check_partial_fit_first_call(self, classes)
            if len(self.classes_) < 2:
                raise ValueError(
                    "classes must name at least two classes, got "
                    f"{self.classes_.tolist()}. Name all that will ever come."
                )
            dataset: Rows | StreamDataset
            if is_stream(X, y):
                dataset = self._open_training(X, y, sample_weight, self.classes_)
            else:
                rows, labels = self._validate_training_data(X, y, reset=not fitted)
                codes = encode(labels, self.classes_)
                self._check_settings(rows.shape[0])
                dataset = make_dataset(*self._weigh(rows, codes, sample_weight))
                self._check_batches(len(dataset))
            seeds = self._draw_seeds()
            if fitted and self._is_incremental:
                net = self.net_
                # Taken up when the net next trains.
                net.set_params(
                    temperature=self._last_temperature(),
                    lr=self._first_learning_rate(incremental=True),
                )
            else:
                net = self._make_net(seeds, 1, None, incremental=True)
                self._initialize(net)
                if fitted:
                    self._load_weights(net)
            if fitted:  # An error from here on costs the optimizer's state.
                before["_is_incremental"] = False
            net.partial_fit(dataset)
            history = self.history_ if fitted else []
            self._finish(net, history=history)
            self._find_basis(dataset, seeds["rows"])
            self._is_incremental = True
        return self

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[dict[str, Any]]:
        """Leave the estimator as it was if fitting fails: nothing is lost."""
        before = dict(vars(self))
        try:
            with torch_defaults():
                yield before
        except BaseException:
            self.__dict__ = before
            if "net_" in before:  # It may have been training on.
                before["net_"].module_.eval()
            raise

    def _validate_training_data(
        self, X: Any, y: Any, *, reset: bool
    ) -> tuple[Any, Array]:
        X, y = self._validate(
            X, y, accept_sparse="csr", dtype=DTYPES, order="C", reset=reset
        )
        check_classification_targets(y)
        check_range(X)
        return X, y

    def _check_settings(self, n_rows: int) -> None:
        """Check what the parameters' own ranges don't say."""
        self._check_batches(n_rows)
        self._check_skorch_params()
        self._check_class_weight()
        self._resolve_device()

    def _check_batches(self, n_rows: int) -> None:
        if min(self.batch_size, n_rows) < self._min_batch_size():
            raise ValueError(
                f"batch_size={self.batch_size} and {n_rows} rows of X (to train on, "
                "different, and of positive weight) must both be at least "
                f"{self._min_batch_size()} for a module with batch normalization. "
                "Raise them, or use another normalization."
            )

    def _weigh(
        self,
        X: Any,
        codes: npt.NDArray[np.int64],
        sample_weight: npt.ArrayLike | None,
    ) -> tuple[Any, npt.NDArray[np.int64], FloatArray | None]:
        """Return rows, codes and weights, None where all are equal."""
        n_merged = max(self.batch_size, MERGED_ROWS)
        if X.shape[0] > n_merged and sample_weight is self.class_weight is None:
            return X, codes, None
        weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        if self.class_weight is not None:
            by_class = compute_class_weight(
                self.class_weight,
                classes=self.classes_,
                y=self.classes_[codes],
                sample_weight=weight,
            )
            weight = weight * by_class[codes]
            if not weight.any():
                raise self._all_weightless()
        kept = weight > 0
        if not kept.all():
            X, codes, weight = X[kept], codes[kept], weight[kept]
        if X.shape[0] <= n_merged:
            X, codes, weight = merge_duplicates(X, codes, weight)
        if (weight == weight[0]).all():
            return X, codes, None
        return X, codes, weight / weight.max()  # Sums of the largest would overflow.

    def _all_weightless(self) -> ValueError:
        return ValueError(
            "class_weight must leave some row a positive weight, got "
            f"{self.class_weight!r}. Raise the weight of a class in y."
        )

    def _initialize(self, net: SoftRankNet) -> None:
        net.initialize()
        width = net.module_.embedding_width
        if isinstance(self.n_components, Integral) and self.n_components > width:
            raise ValueError(
                f"n_components must be at most {width}, the width of the embedding, "
                f"got {self.n_components}. Lower it, or use 'auto'."
            )

    def _load_weights(self, net: SoftRankNet) -> None:
        """Start a net from the weights of the previous fit."""
        weights = self.module_.state_dict()
        # Not of torch.compile's wrapper, whose names have a prefix.
        module: Any = getattr(net.module_, "_orig_mod", net.module_)
        own = module.state_dict()
        if {k: v.shape for k, v in own.items()} != {
            k: v.shape for k, v in weights.items()
        }:
            raise ValueError(
                "The module's parameters must stay as they were at the previous fit to "
                "go on from its weights. Undo the change, or call clone(estimator) and "
                "start anew."
            )
        module.load_state_dict(weights)

    def _finish(self, net: SoftRankNet, history: list[dict[str, Any]]) -> None:
        """Set the fitted attributes of a trained net."""
        net.module_.eval()
        epochs = [_public_record(record) for record in net.history[-net.max_epochs :]]
        self.history_ = [
            *history,
            *({**e, "epoch": len(history) + i} for i, e in enumerate(epochs, start=1)),
        ]
        self.n_iter_ = len(self.history_)
        self.temperature_ = net.temperature_
        # They would hold the validation rows and a second copy of the weights.
        net.train_split = None
        for _, callback in net.callbacks_:
            if isinstance(callback, EarlyStopping):
                callback.best_model_weights_ = None
        self.net_ = net

    def _sketch_net(self, n_inputs: int, n_classes: int) -> SoftRankNet:
        """Return a net not to be trained, but to be asked how it would be."""
        sketch = clone(self)
        sketch.n_features_in_, sketch.classes_ = n_inputs, np.arange(n_classes)
        seeds = dict.fromkeys(("module", "order", "rows"), 0)
        return sketch._make_net(seeds, self.max_epochs, None)

    def _find_basis(self, dataset: Rows | StreamDataset, seed: int) -> None:
        """Set the fitted attributes that `transform` needs, from the rows given."""
        X, codes, weight = sample_rows(dataset, seed)
        self._fit_compressor(X, codes, weight, self.n_components, self.compression_tol)

    def _fit_compressor(
        self,
        X: Any,
        codes: npt.NDArray[np.int64] | None,
        weight: FloatArray | None,
        n_components: str | float | None,
        tol: float,
    ) -> None:
        # In single precision, like the training: half the time of double.
        Z = self._embed(X.astype(np.float32, copy=False))
        head = self._head()
        with torch_defaults(), torch.inference_mode():
            logits = head(torch.from_numpy(Z.astype(np.float64))).numpy()
            if codes is None:
                codes = logits.argmax(axis=1)
            compressor = RankCompressor(n_components, tol=tol)
            compressor.fit(Z, codes, weight, head=head)
        norms = np.linalg.norm(logits, axis=1)
        s = compressor.singular_values_
        self.compressor_ = compressor
        self.n_components_ = compressor.n_components_
        self.singular_values_ = s
        self.rank_ = count_above(s, RANK_TOL)
        self.logit_norm_ = float(np.average(norms, weights=weight))

    def _head(self) -> Callable[[Tensor], Tensor]:
        """Return the network's head in double precision, on the CPU."""
        return copy.deepcopy(self.module_).cpu().double().head

    def compress(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        *,
        n_components: str | float | None = "auto",
        compression_tol: float | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Find the basis and the size of the embedding anew, without any training.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows that stand for those to be transformed. For ``n_components="auto"`` the
            rows trained on serve well; of new ones take a thousand, if there are.
        y : array-like of shape (n_samples,), default=None
            Their labels, for ``n_components="auto"``. None takes the network's own
            predictions: the size is then the least that is expected to keep those.
        n_components : "auto", int, float or None, default="auto"
            As in the constructor.
        compression_tol : float, default=None
            As in the constructor; None takes the estimator's.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        Self
            The estimator, whose `transform` uses the new basis.

        Raises
        ------
        ValueError
            For parameters or data out of range; the estimator keeps its basis.
        """
        check_is_fitted(self)
        tol = self.compression_tol if compression_tol is None else compression_tol
        validate_parameter_constraints(
            {
                name: self._parameter_constraints[name]
                for name in ("n_components", "compression_tol")
            },
            {"n_components": n_components, "compression_tol": tol},
            caller_name="compress",
        )
        X = as_frame(X, self._columns(X), numeric=not self._has_categories)
        if is_stream(X):
            raise ValueError(
                f"X must be an array, got {type(X).__name__}. Pass some thousand rows, "
                "whose embedding is held at once."
            )
        X = self._validate_rows(X)
        check_range(X)
        codes = None
        if y is not None:
            codes = encode(np.asarray(y), self.classes_, "Drop rows of other classes.")
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        self._fit_compressor(X, codes, weight, n_components, tol)
        return self

    # -- scikit-learn's conventions --------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # Weights as arrays, and what rebuilds the net around them: no optimizer,
        # callbacks or data, and no trace of the device.
        state: dict[str, Any] = dict(super().__getstate__())
        net = state.pop("net_", None)
        if net is not None:
            state["_net_recipe"] = (net.module, net.get_params_for("module"))
            state["_weights"] = {
                name: tensor.numpy(force=True)
                for name, tensor in self.module_.state_dict().items()
            }
            state["_is_incremental"] = False  # Its optimizer is gone.
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        recipe, weights = state.pop("_net_recipe", None), state.pop("_weights", None)
        super().__setstate__(state)
        if recipe is None:
            return
        module, module_params = recipe
        try:
            device = self._resolve_device()
        except ValueError:  # Trained on a device that this machine hasn't got.
            device = torch.device("cpu")
        with torch_defaults():
            net = SoftRankNet(
                module,
                **{f"module__{name}": value for name, value in module_params.items()},
                temperature=self.temperature_,
                classes=np.arange(len(self.classes_)),
                callbacks="disable",
                train_split=None,
                verbose=0,
                device=str(device),
            )
            self.net_ = net.initialize()
            self.module_.load_state_dict(
                {name: torch.tensor(array) for name, array in weights.items()}
            )
        self.module_.eval()


def _count_labels(labels: Any) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return the distinct labels of a stream's chunk and how often each comes."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            "X must yield one label with each row, got labels of shape "
            f"{labels.shape[1:]}. Name the class."
        )
    if labels.dtype.kind in "Of" and any(v is None or v != v for v in labels.tolist()):
        raise ValueError(
            "y must hold a label for each row, got missing ones. Drop such rows."
        )
    values, numbers = np.unique(labels, return_counts=True)
    # Twice each: it takes few rows of many classes for a regression's, and a chunk is
    # few rows.
    check_classification_targets(np.repeat(values, 2))
    return values, numbers


@dataclass
class Training:
    """What a fit is going to train, and on what."""

    net: SoftRankNet
    dataset: Rows | StreamDataset
    seed: int


def _public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return skorch's record of an epoch, less bookkeeping and times."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in sorted(record.items())
        if name not in ("batches", "dur")
        and not name.endswith(("_best", "_batch_count"))
    }
