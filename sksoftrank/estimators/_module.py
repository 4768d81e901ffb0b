"""Any torch module as an estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._docs import document_shared
from sksoftrank.estimators._shapes import ShapedInputClassifier
from sksoftrank.losses import TemperatureSchedule
from sksoftrank.modules import AdaptedModule, EmbedHeadModule


@document_shared()
class SoftRankClassifier(ShapedInputClassifier):
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
    # Of a module of unknown size.
    _inference_rows = 256

    def __init__(
        self,
        module: Any,
        module_params: dict[str, Any] | None = None,
        *,
        temperature: float | TemperatureSchedule = 1.0,
        n_components: str | float | None = "auto",
        compression_tol: float = 0.005,
        optimizer: str = "adam",
        learning_rate: str | float = "auto",
        weight_decay: float = 0.0,
        lr_schedule: str = "cosine",
        label_smoothing: float = 0.0,
        max_grad_norm: float | None = None,
        max_epochs: int = 50,
        batch_size: int = 128,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        class_weight: dict[Any, float] | str | None = None,
        warm_start: bool = False,
        callbacks: list[Any] | None = None,
        net_params: dict[str, Any] | None = None,
        device: str | int | torch.device = "auto",
        precision: str = "float32",
        compile: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            temperature=temperature,
            n_components=n_components,
            compression_tol=compression_tol,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            label_smoothing=label_smoothing,
            max_grad_norm=max_grad_norm,
            max_epochs=max_epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            class_weight=class_weight,
            warm_start=warm_start,
            callbacks=callbacks,
            net_params=net_params,
            device=device,
            precision=precision,
            compile=compile,
            random_state=random_state,
            verbose=verbose,
        )
        self.module = module
        self.module_params = module_params

    def _embedding_width(self) -> int | None:
        return self.module_.embedding_width if hasattr(self, "net_") else None

    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        return AdaptedModule, {
            "module": self.module,
            "module_params": self.module_params or {},
            "input_shape": self.input_shape_,
        }

    def _make_net(self, seeds: dict[str, int], *args: Any, **kwargs: Any) -> Any:
        # A module's own layers, dropout say, draw from torch's global generator.
        net = super()._make_net(seeds, *args, **kwargs)
        return net.set_params(random_state=seeds["rows"])
