"""Detection of held-out classes by every method, over temperatures.

Digits: an MLP learns seven classes, the other three are out of distribution. CIFAR-10:
a small CNN learns six classes (airplane, automobile, bird, cat, deer, dog), the other
four (frog, horse, ship, truck) are out of distribution; near, for they are pictures of
the same kind. Detectors are calibrated on rows of known classes that neither the
network nor the report has seen. AUROC of known against held-out test rows; the accuracy
on the known classes stands beside it.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from _common import mean_interval, parser, plain_mlp, write
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sksoftrank import OODDetector, SoftRankCNNClassifier
from sksoftrank.datasets import load_cifar10
from sksoftrank.ood import detection_report

TEMPERATURES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
METHODS = (
    *("msp", "entropy", "max_logit", "energy", "react", "knn", "mahalanobis"),
    *("relative_mahalanobis", "residual", "vim", "neco"),
)
MEASURES = ("auroc", "fpr_at_tpr", "aupr_in", "aupr_out")
N_KNOWN = {"digits": 7, "cifar10": 6}


def make(name, temperature, seed):
    if name == "digits":
        return plain_mlp(temperature=temperature, device="cpu", random_state=seed)
    return SoftRankCNNClassifier(
        (16, 32, 64),
        augmentation=("flip", "shift"),
        temperature=temperature,
        max_epochs=12,
        device="cpu",
        random_state=seed,
    )


def measure(name, X, y, temperature, seed):
    torch.set_num_threads(1)
    known = y < N_KNOWN[name]
    X_fit, X_rest, y_fit, y_rest = train_test_split(
        X[known], y[known], test_size=0.4, stratify=y[known], random_state=seed
    )
    X_cal, X_test, y_cal, y_test = train_test_split(
        X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=seed
    )
    clf = make(name, temperature, seed).fit(X_fit, y_fit)
    record = {"accuracy": clf.score(X_test, y_test)}
    for method in METHODS:
        detector = OODDetector(clf, method).fit(X_cal, y_cal)
        report = detection_report(
            detector.score_samples(X_test), detector.score_samples(X[~known])
        )
        record[method] = {measure: report[measure] for measure in MEASURES}
    return record


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--images", type=int, default=8000)
    args = p.parse_args()
    X, y = load_digits(return_X_y=True)
    cifar = load_cifar10(args.data, n_train=args.images, n_test=10)
    data = {
        "digits": ((X / 16).astype(np.float32), y),
        "cifar10": (cifar.X_train, cifar.y_train),
    }
    results = {}
    for name, (X, y) in data.items():
        keys = list(itertools.product(TEMPERATURES, range(args.seeds)))
        fits = Parallel(n_jobs=2)(
            delayed(measure)(name, X, y, t, seed) for t, seed in keys
        )
        records = dict(zip(keys, fits, strict=True))
        results[name] = {}
        for t in TEMPERATURES:
            own = [records[t, seed] for seed in range(args.seeds)]
            row = {"accuracy": mean_interval([r["accuracy"] for r in own])}
            for method in METHODS:
                row[method] = {
                    m: mean_interval([r[method][m] for r in own]) for m in MEASURES
                }
            results[name][t] = row
            cells = [f"{m} {100 * row[m]['auroc'][0]:.1f}" for m in METHODS]
            print(
                f"{name} T={t:g}: accuracy {100 * row['accuracy'][0]:.1f}, AUROC",
                ", ".join(cells),
                flush=True,
            )
    write("detectors", results, seeds=list(range(args.seeds)), images=args.images)


if __name__ == "__main__":
    main()
