"""
How do I make a grid search of a neural network faster?
=======================================================

A grid search trains many small networks, one after the other. ``StackedGridSearchCV``
trains those that share an architecture together, all candidates and folds at once. It
has the signature and the results of scikit-learn's ``GridSearchCV``: only the import
changes.
"""

# %%
# The same search, twice
# ----------------------
# Steps before the network are fitted on the training rows of each fold.
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV

X, y = load_digits(return_X_y=True)
model = make_pipeline(
    MinMaxScaler(), SoftRankMLPClassifier(32, max_epochs=8, random_state=0)
)
grid = {
    "softrankmlpclassifier__temperature": [0.3, 1, 10, 100],
    "softrankmlpclassifier__learning_rate": [0.003, 0.01, 0.03],
}
searches = {}
for search_class in (GridSearchCV, StackedGridSearchCV):
    start = perf_counter()
    search = search_class(model, grid, cv=3).fit(X, y)
    seconds = perf_counter() - start
    searches[search_class.__name__] = search
    print(f"{search_class.__name__:20} {seconds:5.1f} s, {search.best_params_}")

# %%
# The results agree
# -----------------
# ``fallback_reason_`` is None where all fits were stacked; else it says what could not
# be, and why.
plain, stacked = searches.values()
scores = stacked.cv_results_["mean_test_score"]
print(np.abs(plain.cv_results_["mean_test_score"] - scores).max())
print(stacked.fallback_reason_)

# %%
# Read the grid
# -------------
# The best learning rate may differ from temperature to temperature: compare
# temperatures at the best rate of each.
temperatures, rates = grid.values()
table = 100 * np.asarray(scores).reshape(len(rates), len(temperatures))
figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
image = ax.imshow(table, cmap="viridis", aspect="auto")
for (row, column), value in np.ndenumerate(table):
    is_dark = value < (table.min() + table.max()) / 2
    ax.text(
        column,
        row,
        f"{value:.1f}",
        ha="center",
        va="center",
        color="white" if is_dark else "black",
    )
ax.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
ax.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
ax.set(xlabel="temperature", ylabel="learning rate")
figure.colorbar(image, label="accuracy over the folds (%)")
plt.show()
