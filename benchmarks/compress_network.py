"""How much smaller `compress_network` makes a network, and what that costs on new rows.

A perceptron of six layers of 256 is trained at temperatures 1, 100 and 1000, with a
dropout of 0.2, on digits, the gas sensors and two tables, and a convolutional network
and a transformer on digits as images, at 1 and 100. Each is made smaller from the rows
that it was trained on:

- cut: as it comes out of the promise, half a point on new rows, without any training;
- distilled: with twenty passes of distillation.

Rivals for the perceptron have batch normalisation and input scale merged into the
weights alike, at most as many parameters as the distilled network, and the same
distillation, at the best of three rates by the accuracy on the rows held out, where
ours has one:

- svd: the weights' own truncated singular value decompositions, at one share of the
  squared singular values for all layers, whatever the activations are;
- prune: units of the smallest weights removed from each layer by
  `torch.nn.utils.prune.ln_structured`, and taken out.

Accuracies are on rows that no network has seen, multiples before over after. Latency is
that of `predict` of 1,000 rows (of images 200) on one thread, the process's own time,
the median of turns. A cell of data set, network, temperature and seed that is in the
result file is not measured again.
"""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pandas as pd
import torch
from _common import (
    RESULTS,
    find_data,
    hold_threads,
    interleaved,
    mean_interval,
    parser,
    write,
)
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.utils import prune

from sksoftrank import (
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.datasets import load_gas_drift
from sksoftrank.inspection import _compress, compress_network
from sksoftrank.inspection._compress import _n_parameters
from sksoftrank.inspection._cut import Affine, PerceptronCut

NAME = "compress_network"
TABLES = ("penbased", "satimage")
DATA = ("digits", "gas_drift", *TABLES)
TEMPERATURES = (1.0, 100.0, 1000.0)
TRAIN_ROWS, TEST_ROWS = 3_000, 4_000
TOL = 0.005
EPOCHS = 20
RATES = (1e-3, 3e-3, 1e-2)  # Of the rivals.
RARE_GAS = 5  # Of five rows.
GOALS = {
    "mlp": {"parameters": 3.0, "latency": 2.0},
    "cnn": {"multiply_adds": 2.0},
    "vit": {"multiply_adds": 2.0},
}


def load(name, folder):
    if name == "digits":
        return load_digits(return_X_y=True)
    if name == "gas_drift":
        gas = load_gas_drift(folder)
        return gas.X[gas.y != RARE_GAS], gas.y[gas.y != RARE_GAS]
    table = pd.read_parquet(find_data(folder, f"tables/{name}.parquet"))
    y = table.pop("target").astype(str).to_numpy()
    return table.to_numpy(np.float64), y


def split(X, y, seed, is_image):
    n_train = min(TRAIN_ROWS, 3 * len(X) // 4)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, train_size=n_train, stratify=y, random_state=seed
    )
    X_test, y_test = X_test[:TEST_ROWS], y_test[:TEST_ROWS]
    if is_image:
        X_train, X_test = (Z.reshape(-1, 1, 8, 8) / 16 for Z in (X_train, X_test))
    else:
        scaler = StandardScaler().fit(X_train)
        X_train, X_test = (
            np.clip(scaler.transform(Z), -5.0, 5.0) for Z in (X_train, X_test)
        )
    return X_train.astype(np.float32), X_test.astype(np.float32), y_train, y_test


def smallest(build, limit):
    """Return the largest module of at most so many parameters, by bisection."""
    low, high = 0.0, 1.0  # Of what goes.
    for _ in range(30):
        middle = (low + high) / 2
        if _n_parameters(build(middle)) <= limit:
            high = middle
        else:
            low = middle
    return build(high)


def svd_of_weights(cut, share):
    """Return the network whose weights lose a share of squared singular values."""
    layers = []
    for layer in cut.layers[:-1]:
        (weight,) = layer.factors
        left, s, right = torch.linalg.svd(weight, full_matrices=False)
        energy = s.square().cumsum(0) / s.square().sum()
        rank = max(int((energy < 1 - share).sum()), 1)
        factors = (weight,)
        if rank * sum(weight.shape) < weight.numel():
            factors = (right[:rank], left[:, :rank] * s[:rank])
        layers.append(Affine(factors, layer.bias))
    return cut._build([*layers, cut.layers[-1]])


def pruned(cut, amount):
    """Return the network without the units whose weights have the least norm."""
    layers, kept = [], None
    for layer in cut.layers[:-1]:
        (weight,) = layer.factors
        linear = nn.Linear(*weight.shape[::-1], dtype=weight.dtype)
        linear.weight = nn.Parameter(weight)
        n_removed = min(round(amount * len(weight)), len(weight) - 1)
        prune.ln_structured(linear, "weight", n_removed, n=2, dim=0)
        units = linear.weight_mask[:, 0].nonzero()[:, 0]
        weight = weight if kept is None else weight[:, kept]
        layers.append(Affine((weight[units],), layer.bias[units]))
        kept = units
    head = cut.layers[-1]
    return cut._build([*layers, Affine((head.factors[0][:, kept],), head.bias)])


def rivals(clf, X, y, limit, seed):
    """Return by name the rivals' estimators, distilled like ours."""
    data = _compress._read(clf, X, y, None)
    rows, held = _compress._split(clf, data, np.random.RandomState(seed))
    with torch.no_grad():
        cut = PerceptronCut(clf, rows)
        modules = {
            "svd": smallest(lambda share: svd_of_weights(cut, share), limit),
            "prune": smallest(lambda amount: pruned(cut, amount), limit),
        }

    def accuracy(module):
        with torch.no_grad():
            found = module(held.x.float()).argmax(dim=1) == held.codes
        return float(held.weight @ found.double())

    best = {}
    for name, module in modules.items():
        tried = [
            _compress.train_like(
                module, rows, EPOCHS, clf.temperature_, np.random.RandomState(seed), r
            )
            for r in RATES
        ]
        best[name] = _compress._with_module(clf, max(tried, key=accuracy))
    return best


def measure(kind, data, temperature, seed, repeats):
    """Return what is measured of one network."""
    is_image = kind != "mlp"
    X_train, X_test, y_train, y_test = split(*data, seed, is_image)
    params = {"temperature": temperature, "random_state": seed, "device": "cpu"}
    if kind == "cnn":
        clf = SoftRankCNNClassifier(max_epochs=12, **params)
    elif kind == "vit":
        clf = SoftRankTransformerClassifier(patch_size=2, max_epochs=40, **params)
    else:
        clf = SoftRankMLPClassifier((256,) * 6, dropout=0.2, **params)
    clf.fit(X_train, y_train)
    networks = {"whole": clf}
    for name, epochs in (("cut", 0), ("distilled", EPOCHS)):
        networks[name] = compress_network(
            clf, X_train, y_train, tol=TOL, distill_epochs=epochs, random_state=seed
        )
    if not is_image:
        limit = networks["distilled"].compression_report_["n_parameters"][1]
        networks |= rivals(clf, X_train, y_train, limit, seed)
    rows = X_test[: 200 if is_image else 1_000]
    tasks = {
        name: lambda network=network: network.predict(rows)
        for name, network in networks.items()
    }
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = interleaved(tasks, repeats, clock=clock)
    found = {}
    for name, network in networks.items():
        report = getattr(network, "compression_report_", {})
        whole, own = (_n_parameters(e.module_) for e in (clf, network))
        before, after = report.get("n_multiply_adds", (np.nan, np.nan))
        found[name] = {
            "accuracy": network.score(X_test, y_test),
            "parameters": whole / own,
            "multiply_adds": before / after,
            "latency": float(np.median(times["whole"]) / np.median(times[name])),
            "method": report.get("method"),
            "expected_loss": report.get("expected_loss"),
        }
    return {"train_accuracy": clf.score(X_train, y_train), "networks": found}


def show(frame):
    """Print the means over seeds, then what the goals make of them."""
    print(
        f"{'':<28}{'accuracy':>9}{'loss':>8}{'params':>8}{'products':>9}{'latency':>8}"
    )
    for key, part in frame.groupby(["kind", "data", "T", "network"], sort=False):
        m = part[["accuracy", "loss", "parameters", "multiply_adds", "latency"]].mean()
        print(
            f"{key[0]} {key[1]:<10}{key[2]:>5g} {key[3]:<9}{m.accuracy:>9.4f}"
            f"{100 * m.loss:>8.2f}{m.parameters:>7.1f}x{m.multiply_adds:>8.1f}x"
            f"{m.latency:>7.1f}x",
            flush=True,
        )
    for (kind, network), part in frame.groupby(["kind", "network"], sort=False):
        if network == "whole":
            continue
        by_t = part.groupby("T")
        shares = by_t["loss"].agg(lambda loss: float((loss <= TOL + 1e-12).mean()))
        reach = {
            name: int((part[name] >= goal).sum()) for name, goal in GOALS[kind].items()
        }
        print(
            f"{kind} {network}: {len(part)} networks, within half a point "
            f"{(part['loss'] <= TOL + 1e-12).mean():.0%} ({shares.round(2).to_dict()}),"
            f" mean loss {100 * part['loss'].mean():.2f}, parameters by T "
            f"{by_t['parameters'].median().round(1).to_dict()}; goals reached {reach}"
        )


def show_temperature(frame):
    """Print how many times smaller a high temperature's networks are than those of 1.

    An interval over data sets, the seeds of each averaged in logarithms.
    """
    mlp = frame[(frame["kind"] == "mlp") & frame["network"].isin(["cut", "distilled"])]
    for network, part in mlp.groupby("network"):
        sizes = np.log(part.groupby(["T", "data"])["parameters"].agg(stats.gmean))
        for t in TEMPERATURES[1:]:
            mean, half = mean_interval(sizes[t] - sizes[1.0])
            low, middle, high = np.exp([mean - half, mean, mean + half])
            verdict = "smaller" if low > 1 else "larger" if high < 1 else "no smaller"
            print(
                f"T={t:g} over T=1, {network}: {middle:.2f}x the reduction "
                f"[{low:.2f}, {high:.2f}]: {verdict}"
            )


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.set_defaults(threads=1)
    p.add_argument("--repeats", type=int, default=11)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--kinds", nargs="+", default=[*GOALS], choices=GOALS)
    args = p.parse_args()
    hold_threads(args.threads)
    path = RESULTS / f"{NAME}.json"
    cells = json.loads(path.read_text())["results"] if path.exists() else []
    cases = [("mlp", name, t) for name in DATA for t in TEMPERATURES]
    cases += [(k, "digits", t) for k in ("cnn", "vit") for t in TEMPERATURES[:2]]
    cases = [case for case in cases if case[0] in args.kinds]
    for (kind, name, t), seed in itertools.product(cases, range(args.seeds)):
        key = {"kind": kind, "data": name, "T": t, "seed": seed}
        if any(key.items() <= cell.items() for cell in cells):
            continue
        found = measure(kind, load(name, args.data), t, seed, args.repeats)
        cells.append({**key, **found})
        write(NAME, cells, tol=TOL, epochs=EPOCHS, repeats=args.repeats, seed=0)
        print(key, flush=True)
    frame = pd.DataFrame(
        {
            **{k: cell[k] for k in ("kind", "data", "T", "seed")},
            "network": name,
            "loss": cell["networks"]["whole"]["accuracy"] - own["accuracy"],
            **own,
        }
        for cell in cells
        for name, own in cell["networks"].items()
    )
    show(frame)
    show_temperature(frame)


if __name__ == "__main__":
    main()
