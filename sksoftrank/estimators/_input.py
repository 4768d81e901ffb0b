"""How an estimator reads `X`: rows with a shape, columns of categories, streams."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, validate_data
from torch.utils.data import DataLoader

from sksoftrank._checks import LENGTHS, NAMES, naming, read_labels
from sksoftrank._sklearn import StrOptions, read_rows
from sksoftrank.estimators._categories import CategoryEncoder
from sksoftrank.estimators._sources import as_frame, is_arrow, is_stream, open_stream

Array = npt.NDArray[Any]
# What is used as it lies; pixels take an eighth of the memory of numbers.
DTYPES = [np.float64, np.float32, np.uint8]
# The square is within single precision, a sum of a few squares too.
LARGEST = 1e19
# What rows of so many axes are, as errors say it.
ROWS = {
    1: "be a table",
    2: "hold signals (n, channels, length)",
    3: "hold images (n, channels, height, width)",
}
SHAPES = {2: "(channels, length)", 3: "(channels, height, width)"}
# Constraints of the parameters of estimators whose columns may hold categories.
CATEGORY_CONSTRAINTS: dict[str, list[Any]] = {
    "categorical_features": [StrOptions({"from_dtype"}), "array-like", None],
    "handle_unknown": [StrOptions({"infrequent_if_exist", "error"})],
}


@dataclass
class InputReader:
    """Turns `X` into matrices, as `fit` saw it.

    Rows of more axes are flattened once, without a copy where they lie in one piece,
    and columns of categories encoded, so that everything else deals with matrices of
    numbers; the network takes rows apart again.

    Parameters
    ----------
    axes : tuple of int, default=()
        Numbers of axes that a row may have; () for any.
    given_shape : tuple of int, default=None
        Shape of a row that the user asks for; None leaves it to `X`.
    check_shape : callable, default=None
        Called with the shape of a row, to refuse what the network can't take.
    encoder_class : type, default=None
        What encodes columns of categories; None where they can't be taken.
    categorical_features, handle_unknown : object
        The estimator's parameters of these names.

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    n_features : int
        Columns of `X`.
    names : ndarray of shape (n_features,) or None
        Their names.
    encoder : CategoryEncoder or None
        What encodes them; None where no column holds categories.
    """

    axes: tuple[int, ...] = ()
    given_shape: tuple[int, ...] | None = None
    check_shape: Callable[[tuple[int, ...]], None] | None = None
    encoder_class: type[CategoryEncoder] | None = None
    categorical_features: Any = None
    handle_unknown: str = "infrequent_if_exist"

    def __post_init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.n_features = 0
        self.names: Array | None = None
        self.encoder: CategoryEncoder | None = None

    # -- What the network takes in ---------------------------------------------------

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what a module is told of its input, by the names it has for it."""
        encoder = self.encoder
        known = {
            "n_features": encoder.n_columns if encoder else self.n_features,
            "input_shape": self.shape,
            "cardinalities": encoder.cardinalities if encoder else (),
        }
        return {name: known[name] for name in names}

    def count_columns(self, X: Any) -> int:
        """Return how many columns a network takes in for `X`.

        A guess, where `X` is going to be transformed before.
        """
        with suppress(ValueError, TypeError):  # Its fit will say so.
            frame = self.as_frame(X)
            encoder = self._find_encoder(frame)
            if encoder is not None:
                return encoder.fit(frame).n_columns
        shape: tuple[int, ...] = getattr(X, "shape", ())
        return shape[1] if len(shape) == 2 else 1

    def set_features(self, estimator: BaseEstimator) -> None:
        """Set the fitted attributes that tell the number and names of the columns."""
        estimator.n_features_in_ = self.n_features
        if self.names is not None:
            estimator.feature_names_in_ = self.names
        elif hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_

    # -- Arrays and frames -----------------------------------------------------------

    def fit(
        self,
        estimator: BaseEstimator,
        X: Any,
        y: Any,
        before: InputReader | None = None,
        shared: dict[Hashable, Any] | None = None,
    ) -> tuple[Any, Array]:
        """Learn how to read `X`; return the matrix and the labels.

        `before` is the reader of the fit whose weights are gone on from: its
        categories stay. Fits of the same `X` and `y` that read alike share the arrays
        made of them in `shared`.
        """
        rows, shape = self._flatten(self.as_frame(X))
        self.encoder = self._find_encoder(rows, is_image=shape is not None)
        encoding = self.encoder and self.encoder.key
        if before is not None:
            if encoding != (before.encoder and before.encoder.key):
                raise ValueError(
                    "warm_start=True needs the columns of categories and handle_unknown"
                    " of the previous fit, got others. Give X the same dtypes, or set "
                    "warm_start=False to start anew."
                )
            self.encoder, shared = before.encoder, None
        key = (id(X), id(y), encoding)
        if shared is not None and key in shared:
            reader, rows, labels = shared[key]
            self.encoder = reader.encoder
            self.n_features, self.names = reader.n_features, reader.names
        else:
            if before is None and self.encoder is not None:
                self.encoder.fit(rows)
            rows, labels = self._validate_labelled(estimator, rows, y, reset=True)
            self.n_features = estimator.n_features_in_
            self.names = getattr(estimator, "feature_names_in_", None)
            if shared is not None:
                shared[key] = self, rows, labels
        self.shape = self._row_shape(shape)
        return rows, labels

    def read_labelled(
        self, estimator: BaseEstimator, X: Any, y: Any
    ) -> tuple[Any, Array]:
        """Return the matrix and the labels of further training rows."""
        return self._validate_labelled(estimator, self._same_rows(X), y, reset=False)

    def read(self, estimator: BaseEstimator, X: Any) -> Any:
        """Return the matrix of rows, or what starts a pass over matrices."""
        if is_stream(X):
            matrices = self.open(X)
            return lambda: (rows for rows, _ in matrices())
        X = self._validate(
            estimator, self._same_rows(X), reset=False, ensure_all_finite=False
        )
        # torch sums several times as fast as scikit-learn's check; where the sum is not
        # finite, that check finds out why.
        writeable = (
            isinstance(X, np.ndarray) and X.flags.writeable and min(X.strides) >= 0
        )
        if not (writeable and _has_finite_sum(X)):
            name = type(estimator).__name__
            assert_all_finite(X, estimator_name=name, input_name="X")
        return X

    def as_frame(self, X: Any) -> Any:
        """Return an Arrow table as a frame, and anything else as it is."""
        takes_text = self.encoder is not None or (
            self.n_features == 0
            and self.encoder_class is not None
            and self.categorical_features is not None
        )
        return as_frame(X, self.columns(X), numeric=not takes_text)

    def _same_rows(self, X: Any) -> Any:
        rows, shape = self._flatten(self.as_frame(X))
        if shape not in (None, self.shape):
            raise self._other_shape(shape)
        return rows

    def _flatten(self, X: Any) -> tuple[Any, tuple[int, ...] | None]:
        """Return rows as a matrix, and their shape if they had more axes."""
        if isinstance(X, DataLoader):
            raise ValueError(
                "X must be an array or a Dataset, got a DataLoader. Pass its dataset, "
                "X=loader.dataset: the estimator makes batches of its own."
            )
        if self.axes == (1,):  # More are refused by scikit-learn.
            return X, None
        if isinstance(X, list | tuple) and X and np.ndim(X[0]) > 1:
            X = np.asarray(X)  # A list of images.
        if getattr(X, "ndim", 2) <= 2:
            return X, None
        shape = tuple(int(size) for size in X.shape[1:])
        return X.reshape(X.shape[0], math.prod(shape)), shape

    def _validate(
        self,
        estimator: BaseEstimator,
        X: Any,
        y: Any = "no_validation",
        *,
        reset: bool,
        **options: Any,
    ) -> Any:
        """Check rows, and labels where there are some, as scikit-learn does."""
        options = {"accept_sparse": "csr", "dtype": DTYPES, **options}
        encoder = self.encoder
        if encoder is None:
            return read_rows(estimator, X, y, reset=reset, **options)
        with naming(
            X, "X", "y", LENGTHS, NAMES, expected="a table of numbers and categories"
        ):
            # Names and number of columns, of the frame as it came.
            validate_data(estimator, X, y, reset=reset, skip_check_array=True)
            X = encoder.transform(X)
            if isinstance(y, str) and y == "no_validation":
                return check_array(X, **options)
            return check_X_y(X, y, **options)

    def _validate_labelled(
        self, estimator: BaseEstimator, X: Any, y: Any, *, reset: bool
    ) -> tuple[Any, Array]:
        if y is not None:  # scikit-learn says it can't be.
            y = read_labels("y", y)
        with naming(y, "y", "X", expected="a label for each row of X"):
            rows, labels = self._validate(estimator, X, y, reset=reset, order="C")
        with naming(y, "y", expected="classes, as text or in a dtype of numbers"):
            check_classification_targets(labels)
        check_range(rows)
        return rows, labels

    def _find_encoder(
        self, X: Any, *, is_image: bool = False
    ) -> CategoryEncoder | None:
        """Return an encoder, not yet fitted, for what columns of categories `X` has."""
        if self.encoder_class is None or getattr(X, "ndim", 2) != 2:
            return None
        if is_image or self.given_shape is not None:
            self._refuse_categories(
                "for images",
                "Leave it out, or leave out input_shape and pass a table.",
            )
            return None
        with naming(X, "X", "categorical_features", expected="a table"):
            return self.encoder_class.find(
                X, self.categorical_features, self.handle_unknown
            )

    def _refuse_categories(self, where: str, remedy: str) -> None:
        # An array has no single truth, nor does a comparison with one.
        if not isinstance(self.categorical_features, str | None):
            raise ValueError(
                f"categorical_features must be 'from_dtype' or None {where}, got "
                f"{self.categorical_features!r}. {remedy}"
            )

    # -- Streams ---------------------------------------------------------------------

    def open(
        self, X: Any, target: Any = None, *, labelled: bool = False
    ) -> Callable[[], Iterator[tuple[Array, Any]]]:
        """Return what starts a pass over matrices and labels, which may be missing.

        The first chunk that a reader sees tells it how to read the others.
        """
        is_numeric = self.encoder is None
        chunks = open_stream(X, target, self.columns(X), numeric=is_numeric)

        def start() -> Iterator[tuple[Array, Any]]:
            for rows, labels in chunks():
                if labelled and labels is None:
                    raise ValueError(
                        "X must yield pairs (row, label), got rows alone. Yield pairs, "
                        "or pass y where a method takes it."
                    )
                if not self.n_features:
                    self._fit_stream(X, target, rows.shape[1:])
                yield self._read_chunk(rows), labels

        return start

    def columns(self, X: Any) -> list[str] | None:
        """Return which columns of a table or stream to read; None for all."""
        return list(self.names) if self.names is not None and is_arrow(X) else None

    def _fit_stream(self, X: Any, target: Any, shape: tuple[int, ...]) -> None:
        names = None
        if is_arrow(X):
            columns = [name for name in X.schema.names if name != target]
            names = np.array(columns, dtype=object)
        self._refuse_categories(
            "where X is a Dataset", "Use a frame, or encode the categories."
        )
        self.n_features, self.names = math.prod(shape), names
        self.shape = self._row_shape(shape if len(shape) > 1 else None)

    def _read_chunk(self, rows: Array) -> Array:
        """Return the rows of a stream as a matrix of the fit's width."""
        shape = rows.shape[1:]
        if len(shape) > 1 and self.axes != (1,) and shape != self.shape:
            raise self._other_shape(shape)
        width = math.prod(shape)
        rows = rows.reshape(len(rows), width)
        if self.encoder is not None and width == self.n_features:
            encoded: Any = self.encoder.transform(rows)
            rows = encoded.toarray() if sparse.issparse(encoded) else encoded
        rows = check_array(rows, dtype=DTYPES, order="C", input_name="X")
        if width != self.n_features:
            raise ValueError(
                f"X must yield rows of {self.n_features} numbers, got {width}. "
                "Pass what the estimator was fitted on."
            )
        return rows

    # -- Shapes ----------------------------------------------------------------------

    def _other_shape(self, shape: tuple[int, ...] | None) -> ValueError:
        return ValueError(
            f"X must hold rows of shape {self.shape}, got {shape}. Pass what the "
            "estimator was fitted on."
        )

    def _row_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of a row from that in `X`, None for a matrix."""
        given, axes = self.given_shape, self.axes
        if axes == (1,):
            return (self.n_features,)
        if given is not None:
            if shape not in (None, given):
                raise ValueError(
                    f"X must hold rows of input_shape={given}, got {shape}. Change one "
                    "of them; channels come first."
                )
            shape = given
        if shape is None:
            # Never a guessed square: columns are a signal where they are no table.
            is_table = 1 in axes or not axes
            shape = (self.n_features,) if is_table else (1, self.n_features)
        if math.prod(shape) != self.n_features:
            raise ValueError(
                f"X must have {math.prod(shape)} columns for input_shape={shape}, got "
                f"{self.n_features}. Change input_shape, or pass images (n, "
                "channels, height, width)."
            )
        if axes and len(shape) not in axes:
            raise ValueError(
                f"X must {' or '.join(ROWS[n] for n in sorted(axes, reverse=True))}, "
                f"got rows of shape {shape}. Reshape X."
            )
        if given is None and axes:
            _warn_channels_last(shape)
        if self.check_shape is not None:
            self.check_shape(shape)
        return shape


def _warn_channels_last(shape: tuple[int, ...]) -> None:
    """Warn of images whose rows look like (height, width, channels)."""
    colors = (1, 3, 4)
    # Channels that come first leave a square image square.
    if (
        len(shape) == 3
        and shape[2] in colors
        and shape[0] not in colors
        and shape[1] != shape[2]
    ):
        warnings.warn(
            f"X holds images of shape {shape}, taken for {shape[0]} channels of "
            f"{shape[1]} x {shape[2]} pixels, which look like {shape[2]} channels that "
            "come last. Then pass np.moveaxis(X, -1, 1); if channels do come first, "
            f"set input_shape={shape}.",
            UserWarning,
            stacklevel=2,
        )


def as_shape(shape: Any, axes: tuple[int, ...] = (2, 3)) -> tuple[int, ...] | None:
    """Return `input_shape` as a tuple of so many axes, or say why it can't be one."""
    if shape is None:
        return None
    if isinstance(shape, np.ndarray):
        shape = shape.tolist()
    if (
        not isinstance(shape, Sequence)
        or len(shape) not in axes
        or not all(isinstance(size, Integral) and int(size) >= 1 for size in shape)
    ):
        raise ValueError(
            f"input_shape must be {' or '.join(SHAPES[n] for n in axes)}, of positive "
            f"integers, got {shape!r}. Use e.g. (3, 32, 32), or leave it out for a "
            "matrix."
        )
    return tuple(int(size) for size in shape)


def check_range(X: Any) -> None:
    """Refuse numbers whose squares are infinite in training's single precision.

    A network would learn nothing from them: variances and an optimizer's second
    moments divide what they are of to zero.
    """
    values = X.data if sparse.issparse(X) else X
    if values.dtype.kind != "f" or not values.size:
        return
    for value in (values.max(), values.min()):
        if abs(value) > LARGEST:
            raise ValueError(
                f"X must hold numbers between -{LARGEST:g} and {LARGEST:g}, as "
                "training squares them in single precision, got "
                f"{value:.3g}. Scale its columns, e.g. with StandardScaler."
            )


def _has_finite_sum(X: Array) -> bool:
    # One thread: where another process is busy, more wait for each other.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return bool(torch.from_numpy(X).sum().isfinite())
    finally:
        torch.set_num_threads(n_threads)
