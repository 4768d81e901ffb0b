"""One GPU: a fit, a stacked search, images in bf16, memory, and equality with the CPU.

Absolute times, since a GPU is rarely shared, and ratios of medians of turns:

- MLP 128-128, one fit, against a hand-written loop and stock skorch;
- a stacked search of 64 temperatures x 5 folds against stock skorch and our fits one by
  one. Those are timed over the folds of one temperature, and counted 64 times;
- a CNN and a transformer in bf16 against a loop whose step is a CUDA graph: whole fits,
  and what an epoch more takes. Images are CIFAR-10, or noise where that is absent;
- a stack on the GPU against the same stack on the CPU.

`--small` takes seconds on a CPU, to see that all of it runs.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from _common import default_device, hold_threads, interleaved, parser, plain_mlp, write
from cifar10 import ESTIMATORS, recipe
from fit_speed import hand_written, ours, stock_skorch
from sklearn.model_selection import GridSearchCV
from stacked_speed import BATCH, LR, N_CLASSES, N_FEATURES, skorch_net
from torch.nn import functional as F

from sksoftrank import StackedGridSearchCV
from sksoftrank.datasets import load_cifar10
from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked

HIDDEN, IMAGE_BATCH, EPS = (128, 128), 128, float(np.finfo(np.float32).eps)


def measure(
    tasks: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, dict[str, float]]:
    """Return each task's median time in seconds and its peak memory in bytes."""
    peaks = dict.fromkeys(tasks, 0)

    def watched(name: str) -> None:
        if device == "cpu":  # Memory of the process so far.
            tasks[name]()
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        else:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            tasks[name]()
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
        peaks[name] = max(peaks[name], peak)

    times = interleaved({name: partial(watched, name) for name in tasks}, repeats)
    return {
        name: {"seconds": float(np.median(times[name])), "peak_bytes": peaks[name]}
        for name in tasks
    }


def table(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, N_FEATURES), dtype=np.float32)
    return X, (X @ rng.standard_normal((N_FEATURES, N_CLASSES))).argmax(axis=1)


def single_fit(n_rows: int, epochs: int, repeats: int, device: str) -> dict[str, Any]:
    task = (*table(n_rows), N_CLASSES, HIDDEN, epochs, device)
    rivals = {"ours": ours, "loop": hand_written, "stock_skorch": stock_skorch}
    row: dict[str, Any] = measure(
        {name: partial(fit, *task) for name, fit in rivals.items()}, repeats, device
    )
    seconds = {name: row[name]["seconds"] for name in rivals}
    row["loop_over_ours"] = seconds["loop"] / seconds["ours"]
    row["stock_skorch_over_ours"] = seconds["stock_skorch"] / seconds["ours"]
    print(
        f"one fit: {seconds['ours']:.3f} s; the loop takes "
        f"{row['loop_over_ours']:.2f}x our time, stock skorch "
        f"{row['stock_skorch_over_ours']:.2f}x",
        flush=True,
    )
    return row


def search(
    n_rows: int, epochs: int, n_candidates: int, repeats: int, device: str
) -> dict[str, Any]:
    X, y = table(n_rows)
    settings = {"cv": 5, "n_jobs": 1, "refit": False}
    temperatures = np.geomspace(0.3, 100.0, n_candidates).tolist()
    mlp = plain_mlp(
        HIDDEN,
        learning_rate=LR,
        lr_schedule="constant",
        max_epochs=epochs,
        batch_size=BATCH,
        device=device,
        random_state=0,
    )
    skorch = skorch_net(HIDDEN, epochs, device)
    searches = {
        "stacked": StackedGridSearchCV(mlp, {"temperature": temperatures}, **settings),
        "one_by_one": GridSearchCV(mlp, {"temperature": [1.0]}, **settings),
        "stock_skorch": GridSearchCV(
            skorch, {"module__temperature": [1.0]}, **settings
        ),
    }
    row: dict[str, Any] = measure(
        {name: partial(own.fit, X, y) for name, own in searches.items()},
        repeats,
        device,
    )
    stacked = row["stacked"]["seconds"]
    for name in ("one_by_one", "stock_skorch"):
        row[name]["seconds_of_all"] = n_candidates * row[name]["seconds"]
        row[f"{name}_over_stacked"] = row[name]["seconds_of_all"] / stacked
    row["announced_bytes"] = searches["stacked"].stack_bytes_
    print(
        f"search, {n_candidates} x 5 fits: {stacked:.2f} s and "
        f"{row['stacked']['peak_bytes'] / 2**20:.0f} MB; stock skorch takes "
        f"{row['stock_skorch_over_stacked']:.1f}x our time (goal 40), our fits one by "
        f"one {row['one_by_one_over_stacked']:.1f}x (both extrapolated from 5 fits)",
        flush=True,
    )
    return row


def images(folder: Any, n: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return images, their classes and where they come from."""
    if (folder / "cifar10_train.parquet").exists():
        data = load_cifar10(folder, n_train=n, n_test=10)
        return data.X_train, data.y_train, "CIFAR-10"
    rng = np.random.default_rng(0)
    X = rng.random((n, 3, 32, 32), dtype=np.float32)
    return X, np.arange(n) % 10, "noise"


def graphed_loop(clf: Any, X: np.ndarray, y: np.ndarray, device: str) -> None:
    """Train in bf16 as an expert would by hand: the step is a CUDA graph."""
    network, optimizer, options, factors = recipe(clf, X)
    network.to(device).train()
    cuda = device == "cuda"
    base = clf._first_learning_rate(clf.temperature)
    rate = torch.tensor(base, device=device) if cuda else base
    optim = optimizer(
        network.parameters(), lr=rate, fused=True, capturable=cuda, **options
    )
    images, labels = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    size = clf.batch_size
    x, target = images[:size].clone(), labels[:size].clone()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            logits = network(x)
        F.cross_entropy(logits.float(), target).backward()
        if clf.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clf.max_grad_norm)
        optim.step()
        optim.zero_grad()

    if cuda:
        # A few steps beside, as torch's documentation asks for before a capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay
    for factor in factors:
        for group in optim.param_groups:
            if cuda:
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor
        order = torch.randperm(len(images), device=device)
        for rows in order.split(size):
            x.copy_(images[rows])
            target.copy_(labels[rows])
            step()


def image_fits(
    folder: Any, n_images: int, epochs: int, repeats: int, device: str
) -> dict[str, Any]:
    # Whole batches: the loop's graph has one size.
    X, y, source = images(folder, n_images - n_images % IMAGE_BATCH)
    results: dict[str, Any] = {"images": source}
    for kind, estimator in ESTIMATORS.items():
        tasks: dict[str, Callable[[], Any]] = {}
        for n in (1, epochs):
            clf = estimator(
                dropout=0.0,
                max_epochs=n,
                batch_size=IMAGE_BATCH,
                precision="bf16",
                device=device,
                random_state=0,
            )
            tasks[f"ours_{n}"] = partial(clf.fit, X, y)
            tasks[f"loop_{n}"] = partial(graphed_loop, clf, X, y, device)
        row: dict[str, Any] = measure(tasks, repeats, device)
        # Not below the clock's noise, which two short fits may be.
        epoch = {
            who: max(
                row[f"{who}_{epochs}"]["seconds"] - row[f"{who}_1"]["seconds"], 1e-9
            )
            / (epochs - 1)
            for who in ("ours", "loop")
        }
        row["fit_over_loop"] = (
            row[f"ours_{epochs}"]["seconds"] / row[f"loop_{epochs}"]["seconds"]
        )
        row["epoch_seconds"] = epoch
        row["epoch_over_loop"] = epoch["ours"] / epoch["loop"]
        results[kind] = row
        print(
            f"{kind}, bf16, {source}: an epoch takes {epoch['ours']:.2f} s, "
            f"{row['epoch_over_loop']:.2f} of the loop's (goal 1.05); a fit of "
            f"{epochs}, {row['fit_over_loop']:.2f}; memory "
            f"{row[f'ours_{epochs}']['peak_bytes'] / 2**20:.0f} MB, the loop's "
            f"{row[f'loop_{epochs}']['peak_bytes'] / 2**20:.0f}",
            flush=True,
        )
    return results


def difference_of_devices(n_rows: int, device: str) -> dict[str, float]:
    """Return how far the logits of a stack are from those of the CPU's stack."""
    X, y = table(n_rows)
    logits = {}
    for where in ("cpu", device):
        fits = [
            PendingFit(
                # Smooth: where ReLU has its kink a rounding would decide.
                plain_mlp(
                    HIDDEN,
                    activation="tanh",
                    temperature=temperature,
                    max_epochs=3,
                    device=where,
                    random_state=0,
                ),
                X,
                y,
                {},
            )
            for temperature in (0.5, 1.0, 5.0, 50.0)
        ]
        fit_stacked(fits, basis_rows=0)
        for fit in fits:
            if fit.error is not None:
                raise fit.error
        logits[where] = np.stack(
            [f.estimator.decision_function(X) * f.estimator.temperature_ for f in fits]
        )
    apart = np.abs(logits[device] - logits["cpu"]).max() / np.abs(logits["cpu"]).max()
    # What float32 can't tell apart is equal.
    row = {"largest_difference": max(float(apart), EPS), "tolerance": 1e-3}
    print(
        f"stacks on {device} and CPU: logits differ by {row['largest_difference']:.1e} "
        f"of the largest (tolerance {row['tolerance']:.0e})"
    )
    return row


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument(
        "--small", action="store_true", help="on a CPU; figures mean nothing"
    )
    p.add_argument("--repeats", type=int, default=3)
    parts = ("equality", "single_fit", "search", "images")
    p.add_argument("--parts", nargs="+", default=parts, choices=parts)
    args = p.parse_args()
    if not (args.small or torch.cuda.is_available()):
        print("No GPU was found: pass --small to see that everything runs.")
        return
    device = "cpu" if args.small else "cuda"
    small, repeats = args.small, 1 if args.small else args.repeats
    if small:
        hold_threads(1)
    n_rows, n_images = (300, 256) if small else (10_000, 50_000)
    tasks = {
        "equality": partial(difference_of_devices, n_rows, device),
        "single_fit": partial(single_fit, n_rows, 2 if small else 10, repeats, device),
        "search": partial(
            search, n_rows, 1 if small else 10, 2 if small else 64, repeats, device
        ),
        "images": partial(
            image_fits, args.data, n_images, 2 if small else 5, repeats, device
        ),
    }
    results = {}
    for name in args.parts:
        results[name] = tasks[name]()
        write("gpu", results, device=default_device(), repeats=repeats, seed=0)


if __name__ == "__main__":
    main()
