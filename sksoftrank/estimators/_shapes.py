"""Rows that are images or signals: as arrays of more axes, or flattened."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from sksoftrank.estimators._base import BaseSoftRankClassifier


class ShapedInputClassifier(BaseSoftRankClassifier):
    """Base of the classifiers whose rows may have a shape.

    Rows are flattened once, without a copy where they lie in one piece, so that
    everything else deals with matrices; the network takes them apart again.
    """

    input_shape_: tuple[int, ...] = ()

    def _given_shape(self) -> tuple[int, ...] | None:
        """Return the shape of a row that the user asks for; None leaves it to `X`."""
        return None

    def _default_shape(self, n_features: int) -> tuple[int, ...]:
        """Return the shape of a row of a matrix."""
        return (n_features,)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a shape of rows that the network can't take."""

    def _validate(self, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        shape: tuple[int, ...] | None = None
        if isinstance(X, list | tuple) and X and np.ndim(X[0]) > 1:
            X = np.asarray(X)  # A list of images.
        if getattr(X, "ndim", 2) > 2:
            shape = tuple(int(size) for size in X.shape[1:])
            if not options["reset"] and shape != self.input_shape_:
                raise ValueError(
                    f"X must hold rows of shape {self.input_shape_}, got {shape}. Pass "
                    "what the estimator was fitted on."
                )
            X = X.reshape(X.shape[0], math.prod(shape))
        checked = super()._validate(X, y, **options)
        if options["reset"]:
            self._set_shape(shape)
        return checked

    def _read_training(
        self, X: Any, y: Any, sample_weight: Any, validated: dict[Any, Any] | None
    ) -> Any:
        # What fits of the same X share has lost the shape of its rows, and the columns
        # their categories.
        return super()._read_training(X, y, sample_weight, None)

    def _take_shape(self, shape: tuple[int, ...]) -> None:
        super()._take_shape(shape)
        self._set_shape(shape if len(shape) > 1 else None)

    def _set_shape(self, shape: tuple[int, ...] | None) -> None:
        """Set the shape of a row from that in `X`, None for a matrix."""
        given = self._given_shape()
        if given is not None:
            if shape not in (None, given):
                raise ValueError(
                    f"X must hold rows of input_shape={given}, got {shape}. Change one "
                    "of them; channels come first."
                )
            shape = given
        if shape is None:
            shape = self._default_shape(self.n_features_in_)
        if math.prod(shape) != self.n_features_in_:
            raise ValueError(
                f"X must have {math.prod(shape)} columns for input_shape={shape}, got "
                f"{self.n_features_in_}. Change input_shape, or pass images (n, "
                "channels, height, width)."
            )
        self._check_shape(shape)
        self.input_shape_ = shape


def warn_channels_last(shape: tuple[int, ...]) -> None:
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


def as_shape(shape: Any) -> tuple[int, ...] | None:
    """Return `input_shape` as a tuple, or say why it can't be one."""
    if shape is None:
        return None
    if isinstance(shape, np.ndarray):
        shape = shape.tolist()
    if (
        not isinstance(shape, Sequence)
        or len(shape) not in (2, 3)
        or not all(isinstance(size, Integral) and int(size) >= 1 for size in shape)
    ):
        raise ValueError(
            "input_shape must be (channels, height, width) or (channels, length), of "
            f"positive integers, got {shape!r}. Use e.g. (3, 32, 32), or None."
        )
    return tuple(int(size) for size in shape)
