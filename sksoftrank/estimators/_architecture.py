"""What differs from one architecture to another, as one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sksoftrank.estimators._input import InputReader
from sksoftrank.estimators._parameters import BASE_RATES
from sksoftrank.modules import EmbedHeadModule


@dataclass(frozen=True)
class Architecture:
    """A network, and what its training and its predictions need to know of it.

    Parameters
    ----------
    module : type
        Class of the network.
    module_params : dict
        Its arguments, less n_classes, random_state and those of `input_params`.
    input_params : tuple of str
        Arguments that tell it of its input: n_features, input_shape, cardinalities.
    input : InputReader
        How its rows are read, not yet fitted.
    embedding_width : int or None
        Width of the embedding; None where only the network tells.
    base_rates : mapping of str to (float, float), default=BASE_RATES
        Learning rate of each optimizer at temperature 1, and the power of the
        temperature that multiplies it.
    inference_rows : int, default=256
        Rows of a forward pass: its activations stay in the cache.
    draws_globally : bool, default=False
        Whether its own layers, dropout say, draw from torch's global generator.
    """

    module: type[EmbedHeadModule]
    module_params: dict[str, Any]
    input_params: tuple[str, ...]
    input: InputReader
    embedding_width: int | None
    base_rates: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: BASE_RATES
    )
    inference_rows: int = 256
    draws_globally: bool = False
