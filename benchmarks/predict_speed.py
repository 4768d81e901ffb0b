"""Time of prediction against bare products by torch and by numpy, and scikit-learn.

The bare passes take the fitted weights: no validation, no argmax or softmax, no result
put together. What they make is the logits for `predict` and `predict_proba`, the
embedding for `embed`, and its projection for `transform`. Ours is compared with the
faster of the two, and with MLPClassifier of the same layers. Every library is held to
so many threads; time is the process's own where that is one.
"""

from __future__ import annotations

import time
import warnings
from functools import partial

import numpy as np
import torch
from _common import hold_threads, interleaved, kernels, parser, plain_mlp, ratios, write
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch.nn import functional as F

ROWS, COLUMNS, CLASSES = 20_000, 64, 26
LAYERS = ((32, 32), (128, 128), (256, 256))
TRAIN_ROWS, CHUNK = 4_000, 2_048
CALLS = 100  # Of one row, in each measurement.
GOAL_BARE, GOAL_RIVAL = 1.1, 1.8


def bare_torch(layers, X):
    """Multiply in chunks, in inference mode."""
    layers = [(torch.from_numpy(w), torch.from_numpy(b), r) for w, b, r in layers]
    x = torch.from_numpy(X)
    with torch.inference_mode():
        for start in range(0, len(x), CHUNK):
            y = x[start : start + CHUNK]
            for weight, bias, has_relu in layers:
                y = F.linear(y, weight, bias)
                y = torch.relu_(y) if has_relu else y


def bare_numpy(layers, X):
    """Multiply in chunks, into the same memory."""
    size = min(CHUNK, len(X))
    outputs = [np.empty((size, len(bias)), X.dtype) for _, bias, _ in layers]
    for start in range(0, len(X), CHUNK):
        x = X[start : start + CHUNK]
        for (weight, bias, has_relu), output in zip(layers, outputs, strict=True):
            out = output[: len(x)]
            np.add(np.matmul(x, weight.T, out=out), bias, out=out)
            x = np.maximum(out, 0.0, out=out) if has_relu else out


def bare_layers(clf):
    """Return weight, bias and whether a ReLU follows, for each method's result."""
    linear = [m for m in clf.module_.modules() if isinstance(m, torch.nn.Linear)]
    arrays = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in linear]
    hidden = [(*pair, True) for pair in arrays[:-1]]
    axes = clf.compressor_.components_.astype(np.float32)
    offset = -axes @ clf.compressor_.mean_.astype(np.float32)
    logits = [*hidden, (*arrays[-1], False)]
    return {
        "predict": logits,
        "predict_proba": logits,
        "transform": [*hidden, (axes, offset, False)],
        "embed": hidden,
    }


def fitted(X, y, hidden):
    """Return both classifiers; ours has converged, and `transform` its usual size.

    The times of all else don't depend on the weights: an epoch does for the rival.
    """
    train = X[:TRAIN_ROWS], y[:TRAIN_ROWS]
    ours = plain_mlp(
        hidden_layer_sizes=hidden, max_epochs=30, device="cpu", random_state=0
    )
    theirs = MLPClassifier(hidden, max_iter=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return ours.fit(*train), theirs.fit(*train)


def repeated(task, n_calls):
    for _ in range(n_calls):
        task()


def measure(ours, theirs, X, repeats, n_threads):
    """Return how each method compares, by method."""
    results = {}
    for method, layers in bare_layers(ours).items():
        tasks = {
            "ours": partial(getattr(ours, method), X),
            "torch": partial(bare_torch, layers, X),
            "numpy": partial(bare_numpy, layers, X),
        }
        if hasattr(theirs, method):
            tasks["scikit_learn"] = partial(getattr(theirs, method), X)
        n_calls = CALLS if len(X) == 1 else 1
        times = interleaved(
            {name: partial(repeated, task, n_calls) for name, task in tasks.items()},
            repeats,
            pause=0.1,
            clock=time.process_time if n_threads == 1 else time.perf_counter,
        )
        results[method] = {
            "microseconds": 1e6 * float(np.median(times["ours"])) / n_calls,
            "times_ours": ratios(times, "ours"),
        }
    return results


def report(case, results):
    print(case)
    for method, result in results.items():
        r = result["times_ours"]
        library = min(("torch", "numpy"), key=r.__getitem__)
        bare = 1 / r[library]
        line = (
            f"  {method}: {result['microseconds']:.0f} us, {bare:.2f}x bare {library} "
            f"({'within' if bare <= GOAL_BARE else 'above'} {GOAL_BARE}x)"
        )
        if "scikit_learn" in r:
            goal = "reaches" if r["scikit_learn"] >= GOAL_RIVAL else "below"
            line += (
                f"; MLPClassifier takes {r['scikit_learn']:.2f}x ours "
                f"({goal} {GOAL_RIVAL}x)"
            )
        print(line, flush=True)


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.set_defaults(threads=(1, 2))
    p.add_argument("--repeats", type=int, default=11)
    args = p.parse_args()
    threads = args.threads if isinstance(args.threads, tuple) else (args.threads,)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    y = (X @ rng.standard_normal((COLUMNS, CLASSES))).argmax(axis=1)
    pairs = {hidden: fitted(X, y, hidden) for hidden in LAYERS}
    rows = []
    for n_threads in threads:
        hold_threads(n_threads)
        print(f"{n_threads} threads each: {kernels()}")
        for hidden, (ours, theirs) in pairs.items():
            for n_rows in (ROWS, 1):
                results = measure(ours, theirs, X[:n_rows], args.repeats, n_threads)
                case = f"{'-'.join(map(str, hidden))}, {n_rows} x {COLUMNS} rows"
                report(case, results)
                rows.append({"case": case, "threads": n_threads, "methods": results})
    write("predict_speed", rows, repeats=args.repeats, seed=0)


if __name__ == "__main__":
    main()
