"""Time of `fit` against a hand-written torch loop, stock skorch and scikit-learn.

All train the same network for the same epochs at the same batch size, learning rate
and threads, from the same float32 array. Ours does more: it checks its input, and finds
the basis of the embedding.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from _common import hold_threads, interleaved, kernels, parser, ratios, write
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F

from sksoftrank import SoftRankMLPClassifier

CASES = (  # rows, columns, classes, hidden layers, epochs
    (10_000, 16, 26, (32, 32), 10),
    (10_000, 16, 26, (128, 128), 10),
    (20_000, 64, 26, (256, 256), 4),
    (20_000, 64, 26, (512, 512), 2),
)
BATCH, LR, TEMPERATURE = 128, 1e-3, 2.0


def network(n_features: int, n_classes: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((n_features, *hidden), hidden, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], n_classes))


def hand_written(X, y, n_classes, hidden, epochs):
    """Train as an expert would by hand: permuted slices and fused Adam."""
    module = network(X.shape[1], n_classes, hidden)
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, fused=True)
    x, target = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        x_epoch, y_epoch = x[order], target[order]
        for i in range(0, len(x), BATCH):
            optimizer.zero_grad()
            logits = module(x_epoch[i : i + BATCH])
            loss = F.cross_entropy(logits / TEMPERATURE, y_epoch[i : i + BATCH])
            loss.backward()
            optimizer.step()
    return module


def stock_skorch(X, y, n_classes, hidden, epochs):
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


def ours(X, y, n_classes, hidden, epochs):
    clf = SoftRankMLPClassifier(
        hidden_layer_sizes=hidden,
        temperature=TEMPERATURE,
        learning_rate=LR,
        max_epochs=epochs,
        batch_size=BATCH,
        device="cpu",
    )
    return clf.fit(X, y)


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.set_defaults(threads=(1, 2))
    p.add_argument("--repeats", type=int, default=7)
    args = p.parse_args()
    threads = args.threads if isinstance(args.threads, tuple) else (args.threads,)
    rows = []
    for n_threads in threads:
        hold_threads(n_threads)
        print(f"{n_threads} threads each: {kernels()}")
        rows += measure(args.repeats, n_threads)
    write("fit_speed", rows, repeats=args.repeats)


def measure(repeats, n_threads):
    """Return a row of results for each case."""
    rows = []
    for n, d, c, hidden, epochs in CASES:
        rng = np.random.default_rng(0)
        X = rng.standard_normal((n, d), dtype=np.float32)
        y = (X @ rng.standard_normal((d, c))).argmax(axis=1)
        task = (X, y, c, hidden, epochs)
        tasks = {f.__name__: (lambda f=f, t=task: f(*t)) for f in RIVALS}
        times = interleaved(tasks, repeats, pause=0.2)
        r = ratios(times, "ours")
        case = f"{n} x {d} rows, {c} classes, {'-'.join(map(str, hidden))}"
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


RIVALS = (hand_written, stock_skorch, scikit_learn, ours)

if __name__ == "__main__":
    main()
