"""Time of a stacked search against GridSearchCV, and of one fit against a loop.

16 temperatures x 5 folds on 10,000 rows, all on the same two cores, the same network,
epochs, batch size and learning rates. GridSearchCV runs each rival with n_jobs=2 in
processes that stand ready; ours runs stacks in two threads. Wall time and the processor
time of all processes are both measured.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import interleaved, parser, ratios, write
from fit_speed import hand_written, stock_skorch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV

N_ROWS, N_FEATURES, N_CLASSES, BATCH = 10_000, 16, 26, 128
TEMPERATURES = np.geomspace(0.3, 100.0, 16).tolist()
warnings.simplefilter("ignore", ConvergenceWarning)


class Network(nn.Module):
    """The network that the stock skorch rival trains; its loss divides by T."""

    def __init__(self, hidden: tuple[int, ...], temperature: float = 1.0) -> None:
        super().__init__()
        sizes = (N_FEATURES, *hidden)
        layers: list[nn.Module] = []
        for a, b in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Linear(hidden[-1], N_CLASSES))
        self.temperature = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits over the temperature."""
        return self.body(x) / self.temperature


class Nothing(Callback):
    """Asks for skorch's loop."""


def ours(hidden: tuple[int, ...], epochs: int, **params: Any) -> SoftRankMLPClassifier:
    return SoftRankMLPClassifier(
        hidden, max_epochs=epochs, batch_size=BATCH, random_state=0, **params
    )


def searches(hidden: tuple[int, ...], epochs: int) -> dict[str, Any]:
    """Return the searches by name; all try as many candidates."""
    settings = {"cv": 5, "n_jobs": 2, "refit": False}
    grid = {"temperature": TEMPERATURES}
    skorch = NeuralNetClassifier(
        Network,
        module__hidden=hidden,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=1e-3,
        max_epochs=epochs,
        batch_size=BATCH,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    )
    sklearn = MLPClassifier(
        hidden, batch_size=BATCH, max_iter=epochs, tol=0.0, n_iter_no_change=epochs + 1
    )
    return {
        "ours": StackedGridSearchCV(ours(hidden, epochs), grid, **settings),
        "skorch_path": GridSearchCV(
            ours(hidden, epochs, callbacks=[Nothing()]), grid, **settings
        ),
        "stock_skorch": GridSearchCV(
            skorch, {"module__temperature": TEMPERATURES}, **settings
        ),
        # It has no temperature: as many values of another parameter.
        "MLPClassifier": GridSearchCV(
            sklearn, {"alpha": np.geomspace(1e-6, 1e-4, 16).tolist()}, **settings
        ),
        "our_fits_one_by_one": GridSearchCV(ours(hidden, epochs), grid, **settings),
    }


def cpu_seconds() -> float:
    """Return processor time of this process and all that it started, so far."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if os.getpid() in (int(path.parent.name), int(fields[1])):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    tasks: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Return wall and processor seconds of each task, after one untimed turn."""
    times: dict[str, dict[str, list[float]]] = {
        name: {"wall": [], "cpu": []} for name in tasks
    }
    for turn in range(repeats + 1):
        for name in list(tasks)[:: 1 if turn % 2 else -1]:
            wall, cpu = time.perf_counter(), cpu_seconds()
            tasks[name]()
            if turn:
                times[name]["wall"].append(time.perf_counter() - wall)
                times[name]["cpu"].append(cpu_seconds() - cpu)
    return times


def search_speed(
    X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], epochs: int, repeats: int
) -> dict[str, Any]:
    tasks = {
        name: (lambda search=search: search.fit(X, y))
        for name, search in searches(hidden, epochs).items()
    }
    times = measure(tasks, repeats)
    row: dict[str, Any] = {"hidden": hidden, "epochs": epochs}
    for kind in ("wall", "cpu"):
        row[kind] = ratios({n: t[kind] for n, t in times.items()}, "ours")
        faster = ", ".join(f"{n} {r:.2f}x" for n, r in row[kind].items())
        print(f"search, {'-'.join(map(str, hidden))}, {kind} time over ours: {faster}")
    return row


def single_speed(
    X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], epochs: int, repeats: int
) -> dict[str, Any]:
    task = (X, y, N_CLASSES, hidden, epochs)
    times = interleaved(
        {
            "ours": lambda: ours(hidden, epochs, learning_rate=1e-3).fit(X, y),
            "hand_written": lambda: hand_written(*task),
            "stock_skorch": lambda: stock_skorch(*task),
        },
        repeats,
    )
    row = ratios(times, "ours")
    faster = ", ".join(f"{n} {r:.2f}x" for n, r in row.items())
    print(
        f"single fit, {'-'.join(map(str, hidden))}, {torch.get_num_threads()} threads, "
        f"wall time over ours: {faster}"
    )
    return {
        "hidden": hidden,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "wall": row,
    }


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--epochs", type=int, default=10)
    args = p.parse_args()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_ROWS, N_FEATURES), dtype=np.float32)
    y = (X @ rng.standard_normal((N_FEATURES, N_CLASSES))).argmax(axis=1)
    single = []
    for threads in sorted({1, args.threads}):
        torch.set_num_threads(threads)
        for hidden, epochs in (((128, 128), 10), ((256,) * 6, 2)):
            single.append(single_speed(X, y, hidden, epochs, 2 * args.repeats + 1))
    search = [
        search_speed(X, y, hidden, args.epochs, args.repeats)
        for hidden in ((128, 128), (32, 32))
    ]
    write(
        "stacked_speed",
        {"single_fit": single, "search": search},
        repeats=args.repeats,
        seed=0,
    )


if __name__ == "__main__":
    main()
