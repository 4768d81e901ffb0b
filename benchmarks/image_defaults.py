"""CNN and transformer on CIFAR-10: the defaults now and before, accuracy and time.

10,000 training images with flips and shifts; all test images, which chose nothing. What
was the default before is spelt out here, its networks as well, and trained for 18 (CNN)
and 12 epochs (transformer), not 50. What is the default now takes no longer, with fewer
epochs for the transformer, by `LENGTHS`. Each fit is kept as it is done, so that a run
that was cut off goes on. Costs are of the processor, on one thread, of whole fits on
few images in turn.
"""

from __future__ import annotations

import json
import time
from functools import partial
from itertools import pairwise

import torch
from _common import (
    RESULTS,
    find_data,
    hold_threads,
    interleaved,
    mean_interval,
    parser,
    ratios,
    write,
)
from torch import nn
from torch.nn import functional as F

from sksoftrank import (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.datasets import load_cifar10
from sksoftrank.modules import Augmentation, EmbedHeadModule, Transformer

AUGMENTATION = ("flip", "shift")
SHAPE = (3, 32, 32)


class FormerCNN(EmbedHeadModule):
    """Two convolutions of 32, 64, 128 channels each, sides halved between stages."""

    def __init__(self, n_classes, random_state):
        super().__init__()
        self.augmentation = Augmentation(AUGMENTATION, random_state)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for width_in, width in pairwise((3, 32, 64, 128)):
            for first in (width_in, width):
                conv = nn.Conv2d(first, width, 3, padding=1, bias=False)
                nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
                self.convs.append(conv)
                self.norms.append(nn.BatchNorm2d(width))
        self.embedding_width = 128
        self.output = nn.Linear(128, n_classes)
        self.to(memory_format=torch.channels_last)

    def embed(self, x):
        """Return the mean over places."""
        x = self.augmentation(x).contiguous(memory_format=torch.channels_last)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if index in (2, 4):
                x = F.max_pool2d(x, 2)
            y = F.relu(norm(conv(x)))
            x = x + y if index % 2 else y
        return x.mean(dim=(2, 3))

    def head(self, z):
        """Return the logits."""
        return self.output(z)


class _LinearPatches(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(3, 64, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(64, 64))

    def no_weight_decay(self):
        return {"positions"}

    def forward(self, x):
        return self.projection(x).flatten(2).transpose(1, 2) + self.positions


class FormerTransformer(Transformer):
    """Patches are projected, with nothing before; three blocks."""

    def __init__(self, n_classes, random_state):
        super().__init__(
            SHAPE,
            n_classes,
            depth=3,
            dropout=0.1,
            augmentation=AUGMENTATION,
            random_state=random_state,
        )
        self.tokens = _LinearPatches()


# Where the rate was 0.003 times the square root of the temperature.
FORMER = {
    "cnn": (
        FormerCNN,
        {"weight_decay": 0.05, "batch_size": 32, "max_epochs": 18},
    ),
    "transformer": (
        FormerTransformer,
        {
            "weight_decay": 0.1,
            "batch_size": 128,
            "max_epochs": 12,
            "lr_schedule": "warmup_cosine",
            "max_grad_norm": 1.0,
        },
    ),
}
NOW = {"cnn": SoftRankCNNClassifier, "transformer": SoftRankTransformerClassifier}
# The transformer's own, by the number of rows, take two and a half times as long.
LENGTHS = {"cnn": {}, "transformer": {"max_epochs": 13, "batch_size": 64}}


def make(kind, which, temperature=1.0, seed=0, augmentation=AUGMENTATION):
    if which == "now":
        return NOW[kind](
            temperature=temperature,
            augmentation=augmentation,
            random_state=seed,
            **LENGTHS[kind],
        )
    module, params = FORMER[kind]
    return SoftRankClassifier(
        module,
        temperature=temperature,
        optimizer="adamw",
        learning_rate=0.003 * temperature**0.5,
        random_state=seed,
        **params,
    )


def measure(clf, data):
    start = time.process_time()
    clf.fit(data.X_train, data.y_train)
    return {
        "accuracy": 100 * clf.score(data.X_test, data.y_test),
        "train_accuracy": 100 * clf.score(data.X_train[::4], data.y_train[::4]),
        "rank": clf.rank_,
        "n_components": clf.n_components_,
        "seconds": time.process_time() - start,
    }


def summarize(cells):
    """Return the mean and interval of the accuracy over seeds, by kind and T."""
    by_setting = {}
    for key, cell in cells.items():
        by_setting.setdefault(key.rsplit("/", 1)[0], []).append(cell)
    return {
        setting: {
            "accuracy": mean_interval([cell["accuracy"] for cell in found]),
            "rank": mean_interval([cell["rank"] for cell in found])[0],
            "seeds": len(found),
        }
        for setting, found in sorted(by_setting.items())
    }


def main():
    p = parser(__doc__)
    p.add_argument("--images", type=int, default=10_000)
    p.add_argument("--test-images", type=int, default=10_000)
    p.add_argument("--timed-images", type=int, default=320)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 10.0])
    p.add_argument("--kinds", nargs="+", choices=list(NOW), default=list(NOW))
    p.add_argument("--which", nargs="+", default=["now", "before"])
    args = p.parse_args()
    find_data(args.data, "cifar10_train.parquet")
    hold_threads(1)
    data = load_cifar10(args.data, n_train=args.images, n_test=args.test_images)
    path = RESULTS / "image_defaults.json"
    before = json.loads(path.read_text())["results"] if path.exists() else {}
    cells, costs = before.get("cells", {}), before.get("cost_over_former", {})

    def keep():
        write(
            "image_defaults",
            {"summary": summarize(cells), "cost_over_former": costs, "cells": cells},
            images=args.images,
            test_images=args.test_images,
        )

    # They lie in the order of their classes.
    step = max(args.images // args.timed_images, 1)
    X, y = data.X_train[::step], data.y_train[::step]
    for kind in args.kinds:
        if kind not in costs:
            fits = {w: partial(make(kind, w).fit, X, y) for w in ("now", "before")}
            times = interleaved(fits, args.turns, clock=time.process_time)
            costs[kind] = 1 / ratios(times, "now")["before"]
            keep()
        print(f"{kind}: {costs[kind]:.2f} of the former time", flush=True)
    for seed in args.seeds:
        for kind in args.kinds:
            for which in args.which:
                for temperature in args.temperatures:
                    key = f"{kind}/{which}/T={temperature:g}/{seed}"
                    if key not in cells:
                        cells[key] = measure(make(kind, which, temperature, seed), data)
                        keep()
                    print(key, cells[key], flush=True)
    for setting, row in summarize(cells).items():
        mean, half = row["accuracy"]
        print(f"{setting}: {mean:.2f} ± {half:.2f} %, rank {row['rank']:.0f}")


if __name__ == "__main__":
    main()
