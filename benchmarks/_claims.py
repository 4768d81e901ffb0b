"""What the claims are measured on: cells of networks that share rows, seed and start.

A cell is all networks of a data set and a seed, trained as stacks, and what is measured
of each. Two recipes: "plain", of three hidden layers of 128, Adam, neither
normalisation nor dropout, where the rate follows the root of the temperature; and
"default", the package's own at a fixed strength, where the rate stays. The networks, by
name:

- ``T=10``: at a temperature.
- ``dual 10``: at temperature 1, with the rate, the first weights and Adam's epsilon of
  `sksoftrank.theory.dual_settings`: but for biases and normalisation the same training.
- ``tuned``: at temperature 1, of some rates and scales of the first weights that which
  is the most accurate on rows held out.
- ``alike z99``: of the same that which the rule chooses by which the temperature is
  chosen as well.
"""

from __future__ import annotations

import itertools
import time
from functools import partial

import numpy as np
import pandas as pd
from _common import plain_mlp
from _protocols import PROTOCOLS
from promise import RARE_GAS, logits_by_size
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tables import load, split

from sksoftrank import (
    OODDetector,
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.corruptions import Corruption
from sksoftrank.datasets import load_cifar10, load_gas_drift
from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked
from sksoftrank.ood import detection_report, linear_probe_score
from sksoftrank.rank import effective_rank, rank_report
from sksoftrank.theory import dual_settings

TEMPERATURES = {
    "plain": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    "default": (0.3, 1.0, 10.0, 30.0, 100.0, 1000.0),
}
# What temperature 1 is tuned over.
RATES = {"plain": (3e-4, 1e-3, 3e-3, 1e-2), "default": (3e-3, 1e-2, 3e-2)}
INITS = {"plain": (0.25, 0.5, 1.0, 2.0), "default": (0.1, 0.3, 1.0)}
OWN_RATE = {"plain": 1e-3, "default": 1e-2}
HIDDEN = {"plain": (128,) * 3, "default": (256,) * 3}
EPOCHS = 100
N_TRAIN = 2000
# Half a point of accuracy.
TOL = 0.005
TOLERANCES = (0.1, 0.01, 0.001)
FINE_TOLERANCES = tuple(float(f"{10 ** -(k / 4):.3g}") for k in range(1, 17))
SIZES = ("z99", "auto", "rmin")
CLIP = 5.0
METHODS = ("msp", "energy", "knn", "vim")
DIAL_TEMPERATURES = (1.0, 10.0, 100.0)
DIALS = {
    "plain": {},
    "1 hidden layer": {"hidden_layer_sizes": (128,)},
    "5 hidden layers": {"hidden_layer_sizes": (128,) * 5},
    "width 32": {"hidden_layer_sizes": (32,) * 3},
    "width 256": {"hidden_layer_sizes": (256,) * 3},
    "batch normalisation": {"normalization": "batch"},
    "layer normalisation": {"normalization": "layer"},
    "weight decay 1e-4": {"weight_decay": 1e-4},
    "AdamW, decay 0.1": {"optimizer": "adamw", "weight_decay": 0.1},
    "SGD": {"optimizer": "sgd"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "dropout 0.2": {"dropout": 0.2},
    "first weights halved": {"init_scale": 0.5},
    "first weights doubled": {"init_scale": 2.0},
}


# -- Networks --------------------------------------------------------------------------


def network(recipe, **params):
    """Return a perceptron of a recipe."""
    if recipe == "plain":
        return plain_mlp(
            **{"max_epochs": EPOCHS, "hidden_layer_sizes": (128,) * 3} | params
        )
    return SoftRankMLPClassifier(dropout=0.2, **params)


def rate_of(recipe, temperature):
    """Return the rate that a recipe has at a temperature."""
    return OWN_RATE[recipe] * (temperature**0.5 if recipe == "plain" else 1.0)


def dual(recipe, temperature):
    """Return what trains like a temperature, at temperature 1."""
    clf = network(recipe)
    found = dual_settings(
        temperature,
        len(HIDDEN[recipe]) + 1,
        clf.optimizer,
        learning_rate=rate_of(recipe, temperature),
        weight_decay=clf.weight_decay,
    )
    return {"net_params": {"optimizer__eps": found.pop("eps")}, **found}


def at_temperatures(recipe, temperatures=None):
    """Return the parameters of the networks at each temperature."""
    return {
        f"T={t:g}": {"temperature": t} for t in temperatures or TEMPERATURES[recipe]
    }


def duals(recipe, temperatures=None):
    """Return the parameters of the exact controls."""
    return {
        f"dual {t:g}": dual(recipe, t)
        for t in temperatures or TEMPERATURES[recipe]
        if t != 1.0
    }


def grid(recipe):
    """Return the parameters at temperature 1 that are tuned over."""
    return {
        f"rate {rate:g} init {init:g}": {
            "temperature": 1.0,
            "learning_rate": rate,
            "init_scale": init,
        }
        for rate, init in itertools.product(RATES[recipe], INITS[recipe])
        if (rate, init) != (OWN_RATE[recipe], 1.0)  # That is "T=1".
    }


def trained(recipe, arms, X, y, seed):
    """Return the networks by name, trained together; without those that diverged."""
    fits = {
        name: PendingFit(network(recipe, **params, random_state=seed), X, y)
        for name, params in arms.items()
    }
    fit_stacked(list(fits.values()))
    for name, fit in fits.items():
        if fit.error is not None:
            print(f"{recipe} {name}: {fit.error}", flush=True)
    return {name: fit.estimator for name, fit in fits.items() if fit.error is None}


# -- Rows ------------------------------------------------------------------------------


def read(name, folder):
    """Return a data set's features as a frame, and its classes as codes."""
    if name != "gas_drift":
        return load(name, folder)
    gas = load_gas_drift(folder)
    rows = np.isin(gas.domains, (2, 3)) & (gas.y != RARE_GAS)
    return pd.DataFrame(gas.X[rows]), np.unique(gas.y[rows], return_inverse=True)[1]


def rows_of(name, folder, seed):
    """Return rows to train, to choose and to report by; half of them at most to train.

    Clipped: a few spikes of the gas sensors would else be most of the variance.
    """
    X, y = read(name, folder)
    y, y_rest, parts = split(X, y, min(N_TRAIN, len(y) // 2), seed)
    X, X_rest = (np.clip(part, -CLIP, CLIP) for part in parts["matrix"])
    half = len(X_rest) // 2
    return {
        "train": (X, y),
        "valid": (X_rest[:half], y_rest[:half]),
        "test": (X_rest[half:], y_rest[half:]),
    }


# -- Measures --------------------------------------------------------------------------


def score(clf, rows):
    """Return the accuracy in per cent."""
    return 100 * float(clf.score(*rows))


def held_out_loss(clf, X, y):
    """Return the log loss, of rows of classes that the network knows."""
    known = np.isin(y, clf.classes_)
    return log_loss(y[known], clf.predict_proba(X[known]), labels=clf.classes_)


def fewest(clf, X, y):
    """Return the fewest directions that keep accuracy, of the basis that `clf` has."""
    codes = np.searchsorted(clf.classes_, y)
    least = float((clf.predict(X) == y).mean()) - TOL - 1e-12
    for size, logits in enumerate(logits_by_size(clf, X), 1):
        if (logits.argmax(dim=1).numpy() == codes).mean() >= least:
            return size
    return clf.embed(X).shape[1]


def ranks(clf, X):
    """Return ranks of the centred embedding and of the centred logits."""
    found = {}
    for name, Z in matrices(clf, X).items():
        report = rank_report(Z, tols=FINE_TOLERANCES, shares=(0.99,))
        numerical = report["numerical_rank"]
        found |= {
            f"{name}z99": report["variance_rank"][0.99],
            f"{name}effective": report["effective_rank"],
            f"{name}numerical": [numerical[tol] for tol in TOLERANCES],
            f"{name}curve": list(numerical.values()),
        }
    return found


def matrices(clf, X):
    """Return the embedding and the logits, which softmax knows but for their mean."""
    logits = clf.decision_function(X)
    return {
        "": clf.embed(X),
        "logits_": logits - logits.mean(axis=1, keepdims=True),
    }


def measures(clf, rows):
    """Return what is measured of a network; of what is chosen by, on other rows too."""
    record = {part: score(clf, rows[part]) for part in rows}
    X_valid, y_valid = rows["valid"]
    record["log_loss"] = held_out_loss(clf, X_valid, y_valid)
    record |= ranks(clf, rows["test"][0])
    record |= {"auto": clf.n_components_, "rank": clf.rank_}
    record["n_classes"] = len(clf.classes_)
    # Found on the rows trained on, as is the basis of all.
    record["valid_auto"] = record["auto"]
    record["valid_z99"] = rank_report(clf.embed(X_valid))["variance_rank"][0.99]
    clf.compress(rows["train"][0], n_components=None)
    record["rmin"] = fewest(clf, *rows["test"])
    record["valid_rmin"] = fewest(clf, X_valid, y_valid)
    return record


# -- Choices ---------------------------------------------------------------------------


def most_accurate(record, arms):
    """Return that network of some which is the most accurate on rows held out."""
    return max(arms, key=lambda arm: (record[arm]["valid"], -record[arm]["log_loss"]))


def smallest(size, record, arms):
    """Return the network of least size on rows held out that keeps accuracy there."""
    least = record["T=1"]["valid"] - 100 * TOL - 1e-9
    kept = [arm for arm in arms if record[arm]["valid"] >= least]
    return min(
        kept, key=lambda arm: (record[arm][f"valid_{size}"], -record[arm]["valid"])
    )


def best_on_searched(record, arms):
    """Return the network that is best on the domains to choose by."""
    return max(arms, key=lambda arm: (record[arm]["search"], record[arm]["valid"]))


CHOICES = {
    "search": best_on_searched,
    **{size: partial(smallest, size) for size in SIZES},
}


def with_choices(record, *names):
    """Replace what was tuned over by what is chosen of it, and add the temperatures."""
    at_one = ["T=1", *(arm for arm in record if arm.startswith("rate"))]
    hot = [arm for arm in record if arm.startswith("T=")]
    chosen = {"tuned": most_accurate(record, at_one)}
    for name in names:
        chosen[f"chosen {name}"] = CHOICES[name](record, hot)
        chosen[f"alike {name}"] = CHOICES[name](record, at_one)
    kept = {arm: own for arm, own in record.items() if not arm.startswith("rate")}
    for own in kept.values():
        own.pop("log_loss", None)
    return kept | {
        name: {"of": arm} | {k: v for k, v in record[arm].items() if "curve" not in k}
        for name, arm in chosen.items()
    }


# -- Cells -----------------------------------------------------------------------------


def ranks_cell(recipe, name, folder, seed):
    """Return ranks, sizes and accuracy at each temperature, and of the controls."""
    rows = rows_of(name, folder, seed)
    arms = {**at_temperatures(recipe), **duals(recipe), **grid(recipe)}
    clfs = trained(recipe, arms, *rows["train"], seed)
    record = {arm: measures(clf, rows) for arm, clf in clfs.items()}
    for arm, own in record.items():
        if not arm.startswith("T="):
            del own["curve"], own["logits_curve"]
    return with_choices(record, *SIZES)


def dials_cell(recipe, name, folder, seed):
    """Return how the rank follows the temperature, by what else is set."""
    rows = rows_of(name, folder, seed)
    arms = {}
    for (dial, params), t in itertools.product(DIALS.items(), DIAL_TEMPERATURES):
        base = 5e-2 if dial == "SGD" else OWN_RATE[recipe]
        own = {"temperature": t, "learning_rate": base * t**0.5}
        arms[f"{dial} T={t:g}"] = own | params
    clfs = trained(recipe, arms, *rows["train"], seed)
    return {
        name: {part: score(clf, rows[part]) for part in ("train", "test")}
        | {"effective": effective_rank(clf.embed(rows["test"][0]), center=True)}
        for name, clf in clfs.items()
    }


def shift_cell(recipe, name, folder, seed):
    """Return accuracy in distribution, on domains to choose by and on others."""
    task = PROTOCOLS[name].task(folder, seed)
    X, X_valid, y, y_valid = train_test_split(
        *task.fit, test_size=0.2, random_state=seed
    )
    search = task.search or {
        str(k): (shift.fit(X).transform(X_valid), y_valid)
        for k, shift in enumerate(task.shifts)
    }
    scale = (lambda Z: Z) if task.is_scaled else StandardScaler().fit(X).transform
    temperatures = [t for t in TEMPERATURES[recipe] if t <= 100]
    arms = {**at_temperatures(recipe, temperatures), **grid(recipe)}
    arms |= duals(recipe, temperatures)
    clfs = trained(recipe, arms, scale(X).astype(np.float32), y, seed)

    def accuracy(clf, *domains):
        found = [score(clf, (scale(Z).astype(np.float32), c)) for Z, c in domains]
        return float(np.mean(found))

    record = {
        arm: {
            "train": accuracy(clf, (X, y)),
            "valid": accuracy(clf, (X_valid, y_valid)),
            "log_loss": held_out_loss(clf, scale(X_valid).astype(np.float32), y_valid),
            "test": accuracy(clf, task.id),
            "search": accuracy(clf, *search.values()),
            "report": accuracy(clf, *task.report.values()),
        }
        for arm, clf in clfs.items()
    }
    return with_choices(record, "search")


def of_new_classes(clf, rows, new):
    """Return how well new classes are detected, and told apart by a probe.

    `rows` of known classes are without the network's; `new` holds rows of new classes
    to train the probe on, and to report.
    """
    record = {}
    for method in METHODS:
        detector = OODDetector(clf, method).fit(*rows["valid"])
        report = detection_report(
            detector.score_samples(rows["test"][0]),
            detector.score_samples(new["test"][0]),
        )
        record[method] = 100 * report["auroc"]
    (X, y), (X_test, y_test) = new["train"], new["test"]
    record["probe"] = 100 * linear_probe_score(
        clf.embed(X), y, clf.embed(X_test), y_test, max_iter=3000
    )
    return record


def parted(rows, new_classes):
    """Return the rows of known classes, and those of new ones, by part."""

    def keep(part, is_new):
        X, y = rows[part]
        kept = np.isin(y, new_classes) == is_new
        return X[kept], y[kept]

    return tuple(
        {part: keep(part, is_new) for part in rows} for is_new in (False, True)
    )


def new_classes_cell(recipe, name, folder, seed):
    """Return detection of classes left out, and their probe, beside accuracy."""
    rows = rows_of(name, folder, seed)
    classes = np.unique(rows["train"][1])
    left_out = np.random.default_rng(seed).permutation(classes)
    rows, new = parted(rows, left_out[: max(2, round(0.3 * len(classes)))])
    arms = {**at_temperatures(recipe), **duals(recipe), **grid(recipe)}
    clfs = trained(recipe, arms, *rows["train"], seed)
    record = {}
    for arm, clf in clfs.items():
        record[arm] = {part: score(clf, rows[part]) for part in rows}
        record[arm]["log_loss"] = held_out_loss(clf, *rows["valid"])
        record[arm] |= of_new_classes(clf, rows, new)
    return with_choices(record)


def target_cell(recipe, name, folder, seed):
    """Return networks of a rank that is asked for, and that of temperature 1."""
    rows = rows_of(name, folder, seed)
    # The search for a temperature leaves the rate as it is.
    own = {"learning_rate": 3e-3} if recipe == "plain" else {}
    untouched = SoftRankMLPClassifier().temperature
    own |= {"device": "cpu", "random_state": seed}
    start = time.process_time()
    cold = network(recipe, temperature=1.0, **own).fit(*rows["train"])
    one_fit = time.process_time() - start
    record = {"T=1": measures(cold, rows)}
    n_classes = len(cold.classes_)
    for asked in (0.5, 0.25, 2 * n_classes):
        start = time.process_time()
        clf = network(recipe, temperature=untouched, target_rank=asked, **own)
        name = f"target {asked}" if asked < 1 else "target 2C"
        try:
            clf.fit(*rows["train"])
        except ValueError as error:
            record[name] = {"error": str(error)}
            continue
        seconds = time.process_time() - start
        record[name] = {
            "asked": max(1, round(asked * cold.rank_)) if asked < 1 else asked,
            "temperature": clf.temperature_,
            "fits": seconds / one_fit,
            **measures(clf, rows),
        }
    for own, name in itertools.product(record.values(), ("curve", "logits_curve")):
        own.pop(name, None)
    return record


def images_cell(recipe, name, folder, seed, n_images=4000, epochs=12):
    """Return all of it at once for a network on pictures of eight classes of ten.

    `recipe` is "cnn" or "vit". No exact dual: both normalise. The rates of all
    temperatures are tried at temperature 1.
    """
    data = load_cifar10(folder, n_train=n_images, n_test=2000)
    # They lie class by class.
    X_valid, X_test, y_valid, y_test = train_test_split(
        data.X_test, data.y_test, test_size=0.5, stratify=data.y_test, random_state=0
    )
    rows = {
        "train": (data.X_train, data.y_train),
        "valid": (X_valid, y_valid),
        "test": (X_test, y_test),
    }
    left_out = np.random.default_rng(seed).permutation(10)[:2]
    rows, new = parted(rows, left_out)
    own = {"max_epochs": epochs, "random_state": seed}
    own["augmentation"] = ("flip", "shift")
    if recipe == "cnn":
        first = SoftRankCNNClassifier((16, 32, 64), temperature=1.0, **own)
    else:
        first = SoftRankTransformerClassifier(48, temperature=1.0, **own)
    rate = first._first_learning_rate(1.0)
    arms = at_temperatures(recipe, (0.3, 1.0, 10.0, 100.0))
    arms |= {
        f"rate {rate * factor:.2g} init 1": {
            "learning_rate": rate * factor,
        }
        for factor in (0.5, 2.0, 4.0)
    }
    if recipe == "vit":
        arms |= {
            f"attention {t:g}": {"attention_temperature": t} for t in (0.3, 3.0, 10.0)
        }
    X_test, y_test = rows["test"]
    shifted = [
        Corruption(kind, 3, random_state=0).fit_transform(X_test)
        for kind in ("gaussian_noise", "defocus_blur", "contrast", "pixelate")
    ]
    record = {}
    for arm, params in arms.items():
        clf = clone(first).set_params(**params).fit(*rows["train"])
        record[arm] = measures(clf, rows) | of_new_classes(clf, rows, new)
        record[arm]["report"] = float(
            np.mean([score(clf, (Z, y_test)) for Z in shifted])
        )
    return with_choices(record, *SIZES)


CELLS = {
    "ranks": ranks_cell,
    "dials": dials_cell,
    "shift": shift_cell,
    "new_classes": new_classes_cell,
    "target": target_cell,
    "images": images_cell,
}


def rounded(value):
    """Return figures as short as they are worth."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def measure(key, folder):
    """Return the cell of a key ``kind/recipe/data/seed``."""
    kind, recipe, name, seed = key.split("/")
    return rounded(CELLS[kind](recipe, name, folder, int(seed)))
