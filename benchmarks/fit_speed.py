"""Time of `fit` against a hand-written torch loop, stock skorch and scikit-learn.

All train the same network for the same epochs at the same batch size, learning rate
and threads, from the same float32 array. Ours does more: it checks its input, and finds
the basis of the embedding. The last case is the default's recipe, its length and
dropout fixed: batch normalisation, dropout, a learned scale of each column, label
smoothing, and AdamW whose decay spares all but matrices, down half a cosine.

With `--busy` the loop and ours are timed beside processes that keep all cores but one
busy, and without them, in turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from _common import hold_threads, interleaved, kernels, parser, plain_mlp, ratios, write
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import nn
from torch.nn import functional as F

from sksoftrank import SoftRankMLPClassifier

CASES = (  # rows, columns, classes, hidden layers, epochs
    (10_000, 16, 26, (32, 32), 10),
    (10_000, 16, 26, (128, 128), 10),
    (20_000, 64, 26, (256, 256), 4),
    (20_000, 64, 26, (512, 512), 2),
)
BUSY_CASES = (CASES[1], CASES[3])
RECIPE_CASE = (10_000, 32, 10, (256, 256, 256), 4)
BATCH, LR, TEMPERATURE = 128, 1e-3, 2.0


def network(n_features: int, n_classes: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((n_features, *hidden), hidden, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], n_classes))


def hand_written(X, y, n_classes, hidden, epochs, device="cpu"):
    """Train as an expert would by hand: permuted slices and fused Adam."""
    module = network(X.shape[1], n_classes, hidden).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, fused=True)
    x, target = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    for _ in range(epochs):
        order = torch.randperm(len(x), device=device)
        x_epoch, y_epoch = x[order], target[order]
        for i in range(0, len(x), BATCH):
            optimizer.zero_grad()
            logits = module(x_epoch[i : i + BATCH])
            loss = F.cross_entropy(logits / TEMPERATURE, y_epoch[i : i + BATCH])
            loss.backward()
            optimizer.step()
    return module


def stock_skorch(X, y, n_classes, hidden, epochs, device="cpu"):
    """Train as skorch's documentation shows, without its validation split."""
    net = NeuralNetClassifier(
        network(X.shape[1], n_classes, hidden),
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
    return net.fit(X, y)


def scikit_learn(X, y, n_classes, hidden, epochs):
    clf = MLPClassifier(
        hidden,
        batch_size=BATCH,
        learning_rate_init=LR,
        max_iter=epochs,
        tol=0.0,
        alpha=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clf.fit(X, y)


def ours(X, y, n_classes, hidden, epochs, device="cpu"):
    clf = plain_mlp(
        hidden_layer_sizes=hidden,
        temperature=TEMPERATURE,
        learning_rate=LR,
        max_epochs=epochs,
        batch_size=BATCH,
        device=device,
    )
    return clf.fit(X, y)


# -- The recipe ------------------------------------------------------------------------


class Scale(nn.Module):
    """A factor for each column."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        """Multiply."""
        return x * self.weight


RATE, BETAS, DECAY, SMOOTHING, HOT, DROPOUT = 0.01, (0.9, 0.95), 0.1, 0.1, 10.0, 0.2


def recipe_network(n_features, n_classes, hidden):
    layers: list[nn.Module] = [Scale(n_features)]
    for a, b in zip((n_features, *hidden), hidden, strict=False):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        layers += [nn.Dropout(DROPOUT)]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], n_classes))


def recipe_groups(module):
    """Return decayed matrices, the rest, and the scale at six times the rate."""
    scale, *rest = module.parameters()
    return [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": DECAY},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        {"params": [scale], "weight_decay": 0.0, "lr": 6 * RATE},
    ]


def recipe_loop(X, y, n_classes, hidden, epochs):
    """Train the recipe as an expert would by hand."""
    module = recipe_network(X.shape[1], n_classes, hidden)
    optimizer = torch.optim.AdamW(
        recipe_groups(module), lr=RATE, betas=BETAS, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    x, target = torch.from_numpy(X), torch.from_numpy(y)
    module.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        x_epoch, y_epoch = x[order], target[order]
        for i in range(0, len(x), BATCH):
            optimizer.zero_grad()
            logits = module(x_epoch[i : i + BATCH])
            loss = F.cross_entropy(
                logits / HOT, y_epoch[i : i + BATCH], label_smoothing=SMOOTHING
            )
            loss.backward()
            optimizer.step()
        schedule.step()
    return module


class HotNet(NeuralNetClassifier):
    """Divides logits by the temperature."""

    def get_loss(self, y_pred, y_true, *args, **kwargs):
        """Return the loss at the temperature."""
        return super().get_loss(y_pred / HOT, y_true, *args, **kwargs)


def recipe_skorch(X, y, n_classes, hidden, epochs):
    """Train the recipe with skorch's own parts."""
    net = HotNet(
        recipe_network(X.shape[1], n_classes, hidden),
        criterion=nn.CrossEntropyLoss,
        criterion__label_smoothing=SMOOTHING,
        optimizer=torch.optim.AdamW,
        optimizer__betas=BETAS,
        optimizer__fused=True,
        optimizer__param_groups=[
            ("*.weight", {"weight_decay": DECAY}),
        ],
        lr=RATE,
        max_epochs=epochs,
        batch_size=BATCH,
        train_split=None,
        iterator_train__shuffle=True,
        callbacks=[LRScheduler("CosineAnnealingLR", T_max=epochs)],
        verbose=0,
    )
    return net.fit(X, y)


def recipe_ours(X, y, n_classes, hidden, epochs):
    clf = SoftRankMLPClassifier(
        hidden, dropout=DROPOUT, max_epochs=epochs, batch_size=BATCH, device="cpu"
    )
    return clf.fit(X, y)


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.set_defaults(threads=(1, 2))
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--busy", action="store_true", help="beside busy processes")
    args = p.parse_args()
    measure = measure_busy if args.busy else measure_rivals
    threads = args.threads if isinstance(args.threads, tuple) else (args.threads,)
    rows = []
    for n_threads in threads:
        hold_threads(n_threads)
        print(f"{n_threads} threads each: {kernels()}")
        rows += measure(args.repeats, n_threads)
    name = "fit_speed_busy" if args.busy else "fit_speed"
    write(name, rows, repeats=args.repeats, cores=n_cores(), seed=0)


def draw(n, d, c, hidden, epochs):
    """Return what a case is called, and the arguments of the rivals."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    y = (X @ rng.standard_normal((d, c))).argmax(axis=1)
    name = f"{n} x {d} rows, {c} classes, {'-'.join(map(str, hidden))}"
    return name, (X, y, c, hidden, epochs)


def measure_rivals(repeats, n_threads):
    """Return a row of results for each case."""
    rows = []
    for *sizes, epochs in (*CASES, RECIPE_CASE):
        case, task = draw(*sizes, epochs)
        rivals = dict(zip(NAMES, RIVALS, strict=True))
        if (*sizes, epochs) == RECIPE_CASE:
            case += ", the default's recipe"
            rivals |= zip(NAMES, RECIPE_RIVALS, strict=True)
        tasks = {name: partial(f, *task) for name, f in rivals.items()}
        times = interleaved(tasks, repeats, pause=0.2)
        r = ratios(times, "ours")
        rows.append(
            {"case": case, "epochs": epochs, "threads": n_threads, "times_ours": r}
        )
        print(
            f"{case}: the hand-written loop takes {r['hand_written']:.2f}x our time, "
            f"stock skorch {r['stock_skorch']:.2f}x, MLPClassifier "
            f"{r['scikit_learn']:.2f}x",
            flush=True,
        )
    return rows


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def neighbours(n: int) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Start `n` processes that stand still; yield what runs a task while they don't."""
    # They end with this process, however it ends.
    spin = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    processes = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(n)]

    def tell(number: int) -> None:
        for process in processes:
            process.send_signal(number)

    def beside(task: Callable[[], Any]) -> None:
        tell(signal.SIGCONT)
        try:
            task()
        finally:
            tell(signal.SIGSTOP)

    try:
        tell(signal.SIGSTOP)
        yield beside
    finally:
        tell(signal.SIGKILL)
        for process in processes:
            process.wait()


def measure_busy(repeats, n_threads):
    """Return a row of results for each case, with and without busy neighbours."""
    n_busy = max(1, n_cores() - 1)
    # How many times as long a fit takes that loses no more than the cores lost.
    n_left = max(1, n_cores() - n_busy)
    bound = n_threads / min(n_threads, n_left)
    rows = []
    for case_sizes in BUSY_CASES:
        case, task = draw(*case_sizes)
        fits = {"loop": partial(hand_written, *task), "ours": partial(ours, *task)}
        with neighbours(n_busy) as beside:
            tasks = fits | {f"{k}_busy": partial(beside, f) for k, f in fits.items()}
            times = interleaved(tasks, repeats, pause=0.2)
        row = {
            "loop_over_ours_idle": ratios(times, "ours")["loop"],
            "loop_over_ours_busy": ratios(times, "ours_busy")["loop_busy"],
            "ours_busy_over_idle": ratios(times, "ours")["ours_busy"],
            "loop_busy_over_idle": ratios(times, "loop")["loop_busy"],
            "bound": bound,
        }
        rows.append({"case": case, "threads": n_threads, "neighbours": n_busy, **row})
        print(
            f"{case}, {n_busy} busy beside: the hand-written loop takes "
            f"{row['loop_over_ours_busy']:.2f}x our time (goal 1; "
            f"{row['loop_over_ours_idle']:.2f}x idle), ours busy "
            f"{row['ours_busy_over_idle']:.2f}x ours idle (goal {bound:.1f}), the loop "
            f"busy {row['loop_busy_over_idle']:.2f}x the loop idle",
            flush=True,
        )
    return rows


NAMES = ("hand_written", "stock_skorch", "scikit_learn", "ours")
RIVALS = (hand_written, stock_skorch, scikit_learn, ours)
# scikit-learn has no such parts: it trains the plain network.
RECIPE_RIVALS = (recipe_loop, recipe_skorch, scikit_learn, recipe_ours)

if __name__ == "__main__":
    main()
