"""CNN and ViT on CIFAR-10 at temperature 1: accuracy and time against the usual ways.

The rivals train the same network on the same rows for the same epochs: (a) a loop
written by hand, with slices of a permuted tensor and fused Adam, whose network lies as
ours does; (b) stock skorch, whose network lies in torch's own order, as a user would
have it. Accuracy is over seeds; time is over epochs of each in turn.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch
from _common import find_data, interleaved, mean_interval, parser, ratios, write
from joblib import Parallel, delayed
from skorch import NeuralNetClassifier
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from sksoftrank import SoftRankCNNClassifier, SoftRankTransformerClassifier
from sksoftrank.datasets import load_cifar10

ESTIMATORS = {"cnn": SoftRankCNNClassifier, "vit": SoftRankTransformerClassifier}


def make(kind, epochs, seed=0, device="auto"):
    return ESTIMATORS[kind](
        augmentation=("flip", "shift"),
        max_epochs=epochs,
        batch_size=64,
        random_state=seed,
        device=device,
    )


def recipe(clf, X):
    """Return what a rival needs to train the network of an estimator."""
    architecture = clf._architecture()
    architecture.input.fit(clf, X[:10], np.arange(10))
    inputs = architecture.input.describe(architecture.input_params)
    net = clf._make_net(inputs, 10, len(X), clf._draw_seeds()).initialize()
    options = net.get_params_for("optimizer")
    del options["fused"]
    factors = clf._learning_rate_factors(net.max_epochs, clf.temperature)
    return net.module_, net.optimizer, options, factors


def train_loop(clf, X, y, device):
    """Train by hand; return a function that predicts."""
    network, optimizer, options, factors = recipe(clf, X)
    network.to(device)
    base = clf._first_learning_rate(clf.temperature)
    optim = optimizer(network.parameters(), lr=base, fused=True, **options)
    X, y = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    generator = torch.Generator().manual_seed(clf.random_state)
    network.train()
    for epoch in range(clf.max_epochs):
        for group in optim.param_groups:
            group["lr"] = base * factors[epoch]
        order = torch.randperm(len(X), generator=generator).to(device)
        for rows in order.split(clf.batch_size):
            optim.zero_grad()
            loss = F.cross_entropy(
                network(X[rows]), y[rows], label_smoothing=clf.label_smoothing
            )
            loss.backward()
            if clf.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clf.max_grad_norm)
            optim.step()
    network.eval()

    def predict(X_test):
        with torch.inference_mode():
            parts = torch.from_numpy(X_test).to(device).split(256)
            return torch.cat([network(part).argmax(1) for part in parts]).cpu().numpy()

    return predict


def train_skorch(clf, X, y, device):
    """Train with stock skorch; return a function that predicts."""
    network, optimizer, options, factors = recipe(clf, X)
    # As a user would write it: everything in torch's own order.
    network.to(memory_format=torch.contiguous_format)
    network.memory_format = torch.contiguous_format
    factors = [*factors, factors[-1]]
    callbacks = [LRScheduler(LambdaLR, lr_lambda=factors.__getitem__)]
    if clf.max_grad_norm is not None:
        callbacks.append(GradientNormClipping(clf.max_grad_norm))
    net = NeuralNetClassifier(
        network,
        criterion=torch.nn.CrossEntropyLoss,
        criterion__label_smoothing=clf.label_smoothing,
        optimizer=optimizer,
        **{f"optimizer__{name}": value for name, value in options.items()},
        lr=clf._first_learning_rate(clf.temperature),
        max_epochs=clf.max_epochs,
        batch_size=clf.batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=callbacks,
        verbose=0,
        device=device,
    )
    torch.manual_seed(clf.random_state)
    net.fit(X, y)
    return net.predict


def train_ours(clf, X, y, device):
    return clf.fit(X, y).predict


TRAINERS = {"ours": train_ours, "loop": train_loop, "skorch": train_skorch}


def accuracy(kind, trainer, seed, epochs, device, data, threads):
    if threads:
        torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    clf = make(kind, epochs, seed, device)
    predict = TRAINERS[trainer](clf, data.X_train, data.y_train, device)
    return float((predict(data.X_test) == data.y_test).mean())


def main():
    p = parser(__doc__)
    cuda = torch.cuda.is_available()
    p.add_argument("--images", type=int, default=50_000 if cuda else 10_000)
    p.add_argument("--test-images", type=int, default=10_000 if cuda else 4_000)
    p.add_argument("--epochs", type=int, default=60 if cuda else 12)
    p.add_argument("--seeds", type=int, default=3, help="of ours")
    p.add_argument("--rival-seeds", type=int, default=2)
    p.add_argument(
        "--kinds", nargs="+", choices=list(ESTIMATORS), default=[*ESTIMATORS]
    )
    p.add_argument("--trainers", nargs="+", choices=[*TRAINERS], default=[*TRAINERS])
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--timed-images", type=int, default=50_000 if cuda else 1_280)
    p.add_argument("--only", choices=["accuracy", "time"])
    args = p.parse_args()
    find_data(args.data, "cifar10_train.parquet")
    device = "cuda" if cuda else "cpu"
    data = load_cifar10(args.data, n_train=args.images, n_test=args.test_images)
    results = {}
    for kind in args.kinds:
        results[kind] = {}
        if args.only != "time":
            # Single-threaded fits side by side use two cores better than two threads.
            seeds = {
                t: range(args.seeds if t == "ours" else args.rival_seeds)
                for t in args.trainers
            }
            jobs = [(t, s) for t in args.trainers for s in seeds[t]]
            scores = Parallel(n_jobs=1 if cuda else 2)(
                delayed(accuracy)(
                    kind, t, s, args.epochs, device, data, None if cuda else 1
                )
                for t, s in jobs
            )
            for trainer in args.trainers:
                own = [
                    x for (t, _), x in zip(jobs, scores, strict=True) if t == trainer
                ]
                mean, half = mean_interval(own)
                results[kind][f"accuracy_{trainer}"] = own
                print(f"{kind} {trainer}: {mean:.4f} ± {half:.4f}", flush=True)
        if args.only != "accuracy":
            # Whole fits: what ours does beside training has its real share.
            X, y = (part[: args.timed_images] for part in (data.X_train, data.y_train))
            times = interleaved(
                {
                    trainer: partial(
                        train, make(kind, args.epochs, device=device), X, y, device
                    )
                    for trainer, train in TRAINERS.items()
                },
                args.turns,
                pause=0.3,
            )
            over = ratios(times, "ours")
            results[kind]["over_loop"] = 1 / over["loop"]
            results[kind]["over_skorch"] = 1 / over["skorch"]
            results[kind]["seconds"] = times if cuda else None
            print(
                f"{kind}: {1 / over['loop']:.2f} of the loop's time, "
                f"{1 / over['skorch']:.2f} of skorch's",
                flush=True,
            )
    write(
        "_".join(
            [
                "cifar10",
                *(args.kinds if len(args.kinds) < len(ESTIMATORS) else []),
                *([args.only] if args.only else []),
                *(["of", *args.trainers] if len(args.trainers) < 3 else []),
            ]
        ),
        results,
        images=args.images,
        test_images=args.test_images,
        epochs=args.epochs,
        seeds=args.seeds,
        rival_seeds=args.rival_seeds,
        device=device,
    )


if __name__ == "__main__":
    main()
