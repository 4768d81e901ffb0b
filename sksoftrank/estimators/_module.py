"""Any torch module as an estimator."""

from __future__ import annotations

from typing import Any, Unpack

from sksoftrank.estimators._architecture import Architecture
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._input import InputReader
from sksoftrank.estimators._parameters import SharedParameters
from sksoftrank.modules import AdaptedModule


class SoftRankClassifier(BaseSoftRankClassifier):
    """Any torch module, trained at a softmax temperature of its own.

    Trained with ``cross_entropy(logits / temperature, y)``: a high temperature gives
    embeddings of low rank, that compress to a few columns. The embedding is what the
    module's head takes in: that of its methods ``embed`` and ``head`` where it has
    both and they give its logits, else of the last Linear layer, whose output must be
    the logits.

    `X` is a matrix, or an array of more axes such as images (n, c, h, w), which the
    module gets in batches of float32. Its ``forward`` returns logits (n, n_classes), or
    a tuple that starts with them, or an object or dictionary with ``logits``.

    The module may draw from torch's global generator, as torch's own dropout does: a
    fit borrows it, seeded by `random_state`, and puts it back. Fits in threads
    therefore wait for each other; those in processes do not.

    Parameters
    ----------
    module : type, callable or torch.nn.Module
        What makes the network: a class or function, that is called with
        `module_params` and, where its signature names them, with ``n_features`` or
        ``in_features``, ``n_classes`` or ``num_classes``, ``input_shape``, and
        ``random_state``. Or the network itself, which each fit copies and trains on
        from the weights it has.
    module_params : dict, default=None
        Arguments of the class or function.
    %(parameters)s

    Attributes
    ----------
    input_shape_ : tuple of int
        Of one row.
    %(attributes)s

    References
    ----------
    Masarczyk et al. (2025), arXiv:2506.01562.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from torch import nn
    >>> from sksoftrank import SoftRankClassifier
    >>> def make_network(n_features, n_classes):
    ...     return nn.Sequential(
    ...         nn.Linear(n_features, 64), nn.ReLU(), nn.Linear(64, n_classes)
    ...     )
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = SoftRankClassifier(make_network, temperature=10, random_state=0)
    >>> clf.fit(X / 16, y).score(X / 16, y) > 0.9
    True
    >>> clf.embed(X / 16).shape
    (1797, 64)
    >>> clf.embed(X / 16, layer="0").shape
    (1797, 64)
    """

    _parameter_constraints = {  # noqa: RUF012
        **BaseSoftRankClassifier._parameter_constraints,
        "module": [callable],
        "module_params": [dict, None],
    }

    def __init__(
        self,
        module: Any,
        module_params: dict[str, Any] | None = None,
        **shared: Unpack[SharedParameters],
    ) -> None:
        super().__init__(**shared)
        self.module = module
        self.module_params = module_params

    def _architecture(self) -> Architecture:
        return Architecture(
            AdaptedModule,
            {"module": self.module, "module_params": self.module_params or {}},
            ("input_shape",),
            InputReader(),
            embedding_width=None,
            draws_globally=True,
        )
