"""What `sksoftrank.theory` says against training and numerical optima, one thread.

- duality: largest difference of logits over temperature after 50 steps of a ReLU
  network and its dual, by depth and optimizer ("plain"); beside it with Adam's eps
  unchanged, and for networks outside of the derivation: with biases, and with hidden
  layers normalised over their units
- norms: least norms of a rank against SLSQP over all matrices of that rank
- ranks: the rank predicted by the flow, mean of three starts, against networks trained
  from other starts until each class has the same probability. By gradient descent whose
  steps are as long as the loss keeps falling, at no fixed rate; by SGD at a fixed rate,
  with momentum, on batches of noisy rows; and by Adam at 1e-3 sqrt(T), which the
  derivation does not cover. "other seeds" is the same difference between predictions
  alone: what chance leaves

Cells of ranks that are in the results file already, of the same commit and settings,
are kept.
"""

from __future__ import annotations

import itertools
import json
import math
import time

import numpy as np
import torch
from _common import RESULTS, _git, hold_threads, mean_interval, parser, write
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from sksoftrank.theory import dual_settings, minimal_logit_norm, predict_rank

DEPTHS = (2, 3, 4, 5, 6)
TEMPERATURES = (0.1, 1.0, 10.0, 100.0, 1000.0)
CLASSES = (5, 10, 20, 30)
PROBABILITY = 0.9
TOL = 1e-2
STEPS = {"descent": 400_000, "sgd": 100_000, "adam": 20_000}
NOISE = 0.02
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


# -- Duality -----------------------------------------------------------------------


def logits_of(
    optimizer, n_layers, *, temperature, init_scale, steps=50, kind="plain", **options
):
    """Return logits over temperature (float64) after steps on made-up rows."""
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(64, 8, generator=rng, dtype=torch.float64)
    y = torch.arange(64) % 6
    sizes = [8, *[16] * (n_layers - 1), 6]
    weights, biases = [], []
    for fan_in, fan_out in itertools.pairwise(sizes):
        W = torch.randn(fan_out, fan_in, generator=rng, dtype=torch.float64)
        weights.append((init_scale * W * (2 / fan_in) ** 0.5).requires_grad_())
        biases.append(torch.zeros(fan_out, dtype=torch.float64, requires_grad=True))
    trained = weights + biases if kind == "biases" else weights
    make, fixed = OPTIMIZERS[optimizer]
    stepper = make(
        trained, lr=options.pop("learning_rate"), foreach=False, **fixed, **options
    )

    def logits():
        Z = X
        for W, b in zip(weights[:-1], biases, strict=False):
            Z = Z @ W.T + b
            if kind == "normalised":
                Z = torch.nn.functional.layer_norm(Z, Z.shape[1:])
            Z = torch.relu(Z)
        return (Z @ weights[-1].T + biases[-1]) / temperature

    for _ in range(steps):
        stepper.zero_grad()
        torch.nn.functional.cross_entropy(logits(), y).backward()
        stepper.step()
    return logits().detach()


def duality():
    rows = []
    for optimizer, n_layers in itertools.product(OPTIMIZERS, DEPTHS):
        worst = {}
        for T in (0.1, 10.0, 100.0):
            rate = 0.02 * T ** (2 / n_layers) if optimizer == "sgd" else 1e-3 * T**0.5
            settings = {"learning_rate": rate, "weight_decay": 1e-2}
            if optimizer != "sgd":
                settings["eps"] = 1e-3
            dual = dual_settings(T, n_layers, optimizer, **settings)
            duals = dict.fromkeys(("plain", "biases", "normalised"), dual)
            if optimizer != "sgd":
                duals["eps unchanged"] = {**dual, "eps": settings["eps"]}
            settings |= {"temperature": T, "init_scale": 1.0}
            for name, other in duals.items():
                kind = "plain" if name == "eps unchanged" else name
                pair = [
                    logits_of(optimizer, n_layers, kind=kind, **own)
                    for own in (settings, other)
                ]
                gap = float((pair[0] - pair[1]).abs().max())
                worst[name] = max(worst.get(name, 0.0), gap)
        rows.append({"optimizer": optimizer, "n_layers": n_layers, **worst})
        print(rows[-1], flush=True)
    return rows


# -- The price of a rank -----------------------------------------------------------


def sought_norm(rank, n_classes, probability, seed, starts=5):
    """Return the least root mean square norm that SLSQP finds, unlike the package's."""
    C = n_classes
    others = ~np.eye(C, dtype=bool)
    rng = np.random.default_rng(seed)

    def parts(x):
        U, V = x.reshape(2, C, rank)
        return U, V, U @ V.T

    def objective(x):
        U, V, Z = parts(x)
        return (Z**2).sum() / C, 2 / C * np.concatenate([(Z @ V), (Z.T @ U)]).ravel()

    def leads(x):
        _, _, Z = parts(x)
        rest = logsumexp(Z[others].reshape(C, C - 1), axis=1)
        return np.diag(Z) - rest - math.log(probability / (1 - probability))

    def slopes(x):
        U, V, Z = parts(x)
        rows = np.where(others, Z, -np.inf)
        E = np.eye(C) - np.exp(rows - logsumexp(rows, axis=1, keepdims=True))
        by_u = np.zeros((C, C, rank))
        by_u[np.arange(C), np.arange(C)] = E @ V
        by_v = E[:, :, None] * U[:, None, :]
        return np.concatenate([by_u.reshape(C, -1), by_v.reshape(C, -1)], axis=1)

    best = math.inf
    for _ in range(starts):
        V = rng.standard_normal((C, rank))
        V *= math.sqrt(5 * C) / np.linalg.norm(V, axis=1, keepdims=True)
        found = minimize(
            objective,
            np.concatenate([V.ravel(), V.ravel()]),
            jac=True,
            method="SLSQP",
            constraints={"type": "ineq", "fun": leads, "jac": slopes},
            options={"maxiter": 1_000, "ftol": 1e-10},
        )
        if leads(found.x).min() > -1e-6:
            best = min(best, math.sqrt(found.fun))
    return best


def norms():
    rows = []
    for C, p in itertools.product((4, 6, 8, 10), (0.5, 0.9, 0.99)):
        for rank in range(2, C):
            ours = minimal_logit_norm(rank, C, probability=p)
            theirs = sought_norm(rank, C, p, seed=1)
            rows.append(
                {
                    "n_classes": C,
                    "probability": p,
                    "rank": rank,
                    "norm": ours,
                    "over_slsqp": ours / theirs - 1,
                }
            )
    return rows


# -- Ranks -------------------------------------------------------------------------


def start(n_classes, n_layers, seed):
    rng = np.random.default_rng(seed)
    shape = (n_layers, n_classes, n_classes)
    return rng.standard_normal(shape) / math.sqrt(n_classes)


def loss_of(W, T):
    """Return the loss, and the matrix of log-probabilities (class, input)."""
    Z = W[0]
    for matrix in W[1:]:
        Z = matrix @ Z
    log_p = log_softmax(Z / T, axis=0)
    return -np.diag(log_p).mean(), log_p


def gradient(W, T, X, labels):
    """Return the gradient at inputs (d, n) of classes (c, n), one-hot."""
    below = [X]
    for matrix in W:
        below.append(matrix @ below[-1])
    above = (softmax(below.pop() / T, axis=0) - labels) / (T * X.shape[1])
    G = np.empty_like(W)
    for i in reversed(range(len(W))):
        G[i] = above @ below[i].T
        above = W[i].T @ above
    return G


def train(how, n_classes, n_layers, T, seed):
    """Return the rank of the trained logits (None if unfinished) and the steps."""
    W = start(n_classes, n_layers, seed)
    loss, log_p = loss_of(W, T)
    rate = 0.1 * T ** (2 / n_layers)
    m, v = np.zeros_like(W), np.zeros_like(W)
    classes = np.eye(n_classes)
    rng = np.random.default_rng(seed)
    for step in range(1, STEPS[how] + 1):
        if np.diag(log_p).min() >= math.log(PROBABILITY):
            Z = T * log_p
            s = np.linalg.svd(Z - Z.mean(axis=0), compute_uv=False)
            return int(np.count_nonzero(s > TOL * s[0])), step
        if how == "sgd":
            y = classes[:, rng.integers(n_classes, size=n_classes)]
            X = y + NOISE * rng.standard_normal(y.shape)
            m = 0.9 * m + gradient(W, T, X, y)
            W = W - 0.2 * rate * m
            loss, log_p = loss_of(W, T)
            continue
        G = gradient(W, T, classes, classes)
        if how == "adam":
            m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G**2
            scale = np.sqrt(v / (1 - 0.999**step)) + 1e-8
            W = W - 1e-3 * T**0.5 * m / (1 - 0.9**step) / scale
            loss, log_p = loss_of(W, T)
            continue
        while (tried := loss_of(W - rate * G, T))[0] > loss:
            rate /= 2
        W = W - rate * G
        loss, log_p = tried
        rate *= 1.05
    return None, STEPS[how]


def rank_cell(n_classes, n_layers, T, seeds):
    began = time.process_time()
    prediction = predict_rank(
        T, n_layers, n_classes, probability=PROBABILITY, tol=TOL, random_state=1_000
    )
    seconds = time.process_time() - began
    cell = {"n_classes": n_classes, "n_layers": n_layers, "T": T}
    cell |= {"predicted": prediction.rank, "predict_seconds": seconds}
    ranks = [
        np.count_nonzero(s > TOL * s[0]) for s in prediction.singular_values
    ]  # Each against the mean of the other two.
    rest = [(sum(ranks) - r) / (len(ranks) - 1) for r in ranks]
    cell["other_seeds_error"] = float(np.mean(np.abs(np.subtract(ranks, rest))))
    for how in STEPS:
        ranks, steps = zip(
            *(train(how, n_classes, n_layers, T, seed) for seed in seeds), strict=True
        )
        done = [rank for rank in ranks if rank is not None]
        cell[how] = {
            "ranks": ranks,
            "steps": steps,
            "error": float(np.mean(np.abs(np.subtract(done, prediction.rank))))
            if done
            else None,
        }
    return cell


def table(cells):
    """Return mean absolute errors over all cells and by each of their settings."""

    def row(own):
        found = {
            "predicted": float(np.mean([c["predicted"] for c in own])),
            "other_seeds": float(np.mean([c["other_seeds_error"] for c in own])),
        }
        for how in STEPS:
            errors = [c[how]["error"] for c in own if c[how]["error"] is not None]
            mean, half = mean_interval(errors) if errors else (math.nan, math.nan)
            found[how] = {
                "trained": float(
                    np.mean([r for c in own for r in c[how]["ranks"] if r is not None])
                ),
                "mean_absolute_error": mean,
                "half_width": half,
                "worst_cell": max(errors),
                "unfinished": sum(r is None for c in own for r in c[how]["ranks"]),
            }
        return found

    rows = {"all": row(cells)}
    for name in ("n_layers", "T", "n_classes"):
        for value in sorted({c[name] for c in cells}):
            rows[f"{name}={value:g}"] = row([c for c in cells if c[name] == value])
    return rows


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--small", action="store_true", help="few cells, for the tests")
    p.set_defaults(threads=1)
    args = p.parse_args()
    hold_threads(args.threads)
    small = args.small
    grid = list(
        itertools.product(
            (5, 10) if small else CLASSES,
            (2, 4) if small else DEPTHS,
            (0.1, 10.0) if small else TEMPERATURES,
        )
    )
    settings = {
        "seed": list(range(args.seeds)),
        "probability": PROBABILITY,
        "tol": TOL,
        "small": small,
    }
    results = {"duality": [], "norms": [], "cells": []}
    file = RESULTS / "theory.json"
    if file.exists():
        old = json.loads(file.read_text())
        same = all(old.get(name) == value for name, value in settings.items())
        if same and old["commit"] == _git("rev-parse", "--short", "HEAD"):
            results |= {name: old["results"][name] for name in results}
    if not small:
        results["duality"] = results["duality"] or duality()
        results["norms"] = results["norms"] or norms()
        worst = max(abs(row["over_slsqp"]) for row in results["norms"])
        print(f"norms: at most {worst:.2%} from those of SLSQP", flush=True)
    done = {(c["n_classes"], c["n_layers"], c["T"]) for c in results["cells"]}
    for key in grid:
        if key not in done:
            cell = rank_cell(*key, settings["seed"])
            results["cells"].append(cell)
            print(
                f"C={key[0]} N={key[1]} T={key[2]:g}: {cell['predicted']:.2f}",
                *(f"{how} {cell[how]['ranks']}" for how in STEPS),
                f"{cell['predict_seconds']:.1f} s",
                flush=True,
            )
            write("theory", results, **settings)
    results["ranks"] = table(results["cells"])
    for name, row in results["ranks"].items():
        print(
            f"{name:>14}: predicted {row['predicted']:.2f}, other seeds "
            f"{row['other_seeds']:.2f}; "
            + "; ".join(
                f"{how} {row[how]['trained']:.2f}, error "
                f"{row[how]['mean_absolute_error']:.2f} ±{row[how]['half_width']:.2f}, "
                f"worst {row[how]['worst_cell']:.2f}"
                for how in STEPS
            )
        )
    write("theory", results, **settings)


if __name__ == "__main__":
    main()
