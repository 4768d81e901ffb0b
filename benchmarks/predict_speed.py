"""Time of `predict`, `predict_proba` and `transform` against the bare forward pass.

The bare pass is the fitted module itself on chunks of 2,048 rows in inference mode, its
logits dropped: no validation, no argmax or softmax, no result put together; for float64
rows in a double copy made beforehand. scikit-learn's MLPClassifier has the same layers
and predicts the same rows with as many threads, in their own precision too.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial

import numpy as np
import torch
from _common import interleaved, parser, ratios, write
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from sksoftrank import SoftRankMLPClassifier

ROWS, COLUMNS, CLASSES = 50_000, 100, 10
LAYERS = ((128, 128), (256, 256))
TRAIN_ROWS, CHUNK = 5_000, 2_048
PAUSE = 0.1  # Seconds before each call: OpenBLAS's threads wait busily for more.
METHODS = ("predict", "predict_proba", "transform")
GOAL_BARE = 1.15  # Times the bare forward pass, at most.


def bare_forward(module: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        for start in range(0, len(x), CHUNK):
            module(x[start : start + CHUNK])


def fitted(X, y, hidden):
    """Return both classifiers; ours has converged, and `transform` its usual size.

    The times of all else don't depend on the weights: an epoch does for the rival.
    """
    train = X[:TRAIN_ROWS], y[:TRAIN_ROWS]
    ours = SoftRankMLPClassifier(
        hidden_layer_sizes=hidden, max_epochs=50, device="cpu", random_state=0
    )
    theirs = MLPClassifier(hidden, max_iter=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return ours.fit(*train), theirs.fit(*train)


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--repeats", type=int, default=21)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    X_single = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    y = (X_single @ rng.standard_normal((COLUMNS, CLASSES))).argmax(axis=1)
    rows = []
    for hidden in LAYERS:
        for dtype in (np.float32, np.float64):
            X = X_single.astype(dtype)
            ours, theirs = fitted(X, y, hidden)
            module = copy.deepcopy(ours.module_)
            module = module.double() if dtype == np.float64 else module
            x = torch.from_numpy(X)
            tasks = {
                "bare": partial(bare_forward, module, x),
                **{name: partial(getattr(ours, name), X) for name in METHODS},
                "scikit_learn_predict": partial(theirs.predict, X),
                "scikit_learn_predict_proba": partial(theirs.predict_proba, X),
            }
            with threadpool_limits(args.threads):
                times = interleaved(tasks, args.repeats, PAUSE)
            over_bare = ratios(times, "bare")
            case = {
                "case": f"{'-'.join(map(str, hidden))}, {X.dtype}",
                "bare_seconds": float(np.median(times["bare"])),
                "n_components": ours.n_components_,
            }
            print(
                f"{case['case']}: {ROWS} x {COLUMNS} rows, bare forward "
                f"{1e3 * case['bare_seconds']:.0f} ms",
                flush=True,
            )
            for name in METHODS:
                case[name] = {"times_bare": over_bare[name]}
                verdict = "within" if over_bare[name] <= GOAL_BARE else "above"
                line = (
                    f"  {name} takes {over_bare[name]:.2f}x the bare forward "
                    f"({verdict} {GOAL_BARE}x)"
                )
                rival = f"scikit_learn_{name}"
                if rival in times:
                    faster = ratios(times, name)[rival]
                    case[name]["scikit_learn_times_ours"] = faster
                    line += f", {faster:.2f}x faster than MLPClassifier"
                print(line, flush=True)
            rows.append(case)
    write("predict_speed", rows, repeats=args.repeats, seed=0, rows=ROWS)


if __name__ == "__main__":
    main()
