"""
How do I use my own torch module in scikit-learn?
=================================================

Pass a function that makes it to ``SoftRankClassifier``, and it is a classifier with
scikit-learn's contract: pipelines, searches, ``clone``, sample weights, pickles. What
goes into the last linear layer is its embedding, which ``transform`` compresses.
"""

# %%
# A function that makes the network
# ---------------------------------
# ``n_features`` and ``n_classes`` are filled in by ``fit``. The others are yours, and
# can be searched.
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sksoftrank import SoftRankClassifier
from sksoftrank.displays import EmbeddingDisplay, RankProfileDisplay


class Residual(nn.Module):
    """Add to the rows what a small network makes of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows (n, width)."""
        return x + torch.relu(self.hidden(x))


def make_network(n_features, n_classes, width=64, depth=2):
    """Return the network; its last linear layer is the head."""
    return nn.Sequential(
        nn.Linear(n_features, width),
        *(Residual(width) for _ in range(depth)),
        nn.Linear(width, n_classes),
    )


# %%
# In a pipeline
# -------------
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = make_pipeline(
    StandardScaler(),
    SoftRankClassifier(
        make_network,
        {"width": 32},
        temperature=3,
        max_epochs=40,
        random_state=0,
    ),
)
model.fit(X_train, y_train)
print(f"accuracy {model.score(X_test, y_test):.3f}")
print("columns of transform:", model.transform(X_test).shape[1])

# %%
# Any layer by its name
# ---------------------
# ``embed`` reads any layer, as the module itself calls it.
clf = model[-1]
rows = model[:-1].transform(X_test)
print(clf.embed(rows, layer="1").shape)

# %%
# Everything else works as with the networks of the package
# ---------------------------------------------------------
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
RankProfileDisplay.from_estimator(clf, rows, y_test, ax=axes)
axes[1].set_ylim(85, 100)
figure, ax = plt.subplots(figsize=(6.5, 5), layout="constrained")
EmbeddingDisplay.from_estimator(model, X_test, y_test, ax=ax)
plt.show()
