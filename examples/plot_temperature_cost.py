"""
What does a high softmax temperature cost?
==========================================

Accuracy, perhaps; it depends on the data. This is drawn from what
``benchmarks/default_temperature.py`` measured: the default multi-layer perceptron with
one temperature or another, on tables with a shift, each compared with itself at
temperature 1.
"""

# %%
# Read what was measured
# ----------------------
# Differences are of the same data and seed, intervals over the sets of data.
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import sksoftrank

# In a clone, where the package lies beside the benchmarks.
results = Path(sksoftrank.__file__).parents[1] / "benchmarks" / "results"
measured = json.loads((results / "default_temperature.json").read_text())["results"]
summary = measured["summary"].copy()
print(len(summary.pop("protocols")), "sets of data")
temperatures = [float(t) for t in summary]


def column(name):
    """Return means, and half the widths of their 95 % intervals."""
    return np.array([row[name] for row in summary.values()]).T


# %%
# Accuracy hardly moves, the embedding shrinks
# --------------------------------------------
# To the left points of accuracy, to the right the share of the directions that there
# are at temperature 1. An interval that holds zero shows no difference. Under a shift
# intervals are wide: on some data a high temperature helps, on others it harms. So
# search it on yours.
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for name, label, color, marker, step in (
    ("id_gain", "in distribution", "#0072B2", "o", 0.96),
    ("ood_gain", "under the shift", "#D55E00", "s", 1.04),
):
    mean, half = 100 * column(name)
    x = step * np.array(temperatures)  # Side by side.
    axes[0].errorbar(
        x, mean, half, fmt=f"{marker}-", color=color, capsize=3, label=label
    )
axes[0].axhline(0, color="black", ls=":", lw=1)
axes[0].set_ylabel("points of accuracy over temperature 1")
for name, label, color, marker, step in (
    ("variance_rank_log_ratio", "99 % of the variance", "#0072B2", "o", 0.96),
    ("n_components_log_ratio", "columns of transform", "#D55E00", "s", 1.04),
):
    mean, half = column(name)
    low, share, high = (100 * np.exp(mean + sign * half) for sign in (-1, 0, 1))
    x = step * np.array(temperatures)
    reach = [share - low, high - share]
    axes[1].errorbar(
        x, share, reach, fmt=f"{marker}-", color=color, capsize=3, label=label
    )
axes[1].set_ylabel("directions, in % of those at temperature 1")
axes[1].set_ylim(bottom=0)
for ax in axes:
    ax.set_xscale("log")
    ax.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
    ax.minorticks_off()
    ax.set_xlabel("softmax temperature in training")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
plt.show()
