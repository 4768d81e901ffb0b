"""Time of a stacked search against skorch's and against our own fits one by one.

16 temperatures x 5 folds, the same network, epochs, batch size and optimizer, in one
process and one thread. Every search has run once before it is timed. scikit-learn's
MLPClassifier has no temperature, and is searched over as many values of another
parameter.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from _common import hold_threads, interleaved, kernels, parser, plain_mlp, ratios, write
from fit_speed import network
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn

from sksoftrank import StackedGridSearchCV

N_FEATURES, N_CLASSES, BATCH, LR = 16, 26, 128, 1e-3
TEMPERATURES = np.geomspace(0.3, 100.0, 16).tolist()
GOALS = {(128, 128): 6.0, (32, 32): 15.0}  # times as long as ours that skorch takes


class Network(nn.Module):
    """The network that stock skorch trains; its loss divides by the temperature."""

    def __init__(self, hidden: tuple[int, ...], temperature: float = 1.0) -> None:
        super().__init__()
        self.body = network(N_FEATURES, N_CLASSES, hidden)
        self.temperature = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits over the temperature."""
        return self.body(x) / self.temperature


def skorch_net(
    hidden: tuple[int, ...], epochs: int, device: str = "cpu"
) -> NeuralNetClassifier:
    """Return the net of skorch's documentation, without its validation split."""
    return NeuralNetClassifier(
        Network,
        module__hidden=hidden,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=LR,
        max_epochs=epochs,
        batch_size=BATCH,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
        device=device,
    )


def searches(hidden: tuple[int, ...], epochs: int) -> dict[str, Any]:
    """Return the searches by name; all try as many candidates."""
    settings = {"cv": 5, "n_jobs": 1, "refit": False}
    grid = {"temperature": TEMPERATURES}
    ours = plain_mlp(
        hidden,
        learning_rate=LR,
        lr_schedule="constant",
        max_epochs=epochs,
        batch_size=BATCH,
        random_state=0,
        device="cpu",
    )
    sklearn = MLPClassifier(
        hidden,
        learning_rate_init=LR,
        batch_size=BATCH,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs + 1,
    )
    alphas = np.geomspace(1e-6, 1e-4, len(TEMPERATURES)).tolist()
    return {
        "ours": StackedGridSearchCV(ours, grid, **settings),
        "our_fits_one_by_one": GridSearchCV(ours, grid, **settings),
        "stock_skorch": GridSearchCV(
            skorch_net(hidden, epochs),
            {"module__temperature": TEMPERATURES},
            **settings,
        ),
        "MLPClassifier": GridSearchCV(sklearn, {"alpha": alphas}, **settings),
    }


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--rows", type=int, default=4_000)
    p.add_argument("--epochs", type=int, default=5)
    args = p.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    hold_threads(1)
    print(f"one thread, one process: {kernels()}")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((args.rows, N_FEATURES), dtype=np.float32)
    y = (X @ rng.standard_normal((N_FEATURES, N_CLASSES))).argmax(axis=1)
    rows = []
    for hidden, goal in GOALS.items():
        tasks = {
            name: partial(search.fit, X, y)
            for name, search in searches(hidden, args.epochs).items()
        }
        over = ratios(interleaved(tasks, args.repeats), "ours")
        rows.append({"hidden": hidden, "goal": goal, "wall": over})
        print(
            f"search, {'-'.join(map(str, hidden))}: stock skorch takes "
            f"{over['stock_skorch']:.2f}x our time (goal {goal:.0f}), MLPClassifier "
            f"{over['MLPClassifier']:.2f}x, our fits one by one "
            f"{over['our_fits_one_by_one']:.2f}x",
            flush=True,
        )
    write(
        "stacked_speed",
        {"search": rows},
        rows=args.rows,
        epochs=args.epochs,
        repeats=args.repeats,
        seed=0,
    )


if __name__ == "__main__":
    main()
