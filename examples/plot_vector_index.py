"""
How do I compress embeddings for a vector index?
================================================

An index of vectors is as large and as slow as its vectors are long. The embedding of a
classifier can be cut to a few columns that still tell the classes apart: ``transform``
gives these, strongest first. Here digits are looked up by their nearest neighbours,
among 64 pixels, among all columns of the embedding, and among the few.
"""

# %%
# Fit the network on one part of the images
# -----------------------------------------
# The default ``n_components="auto"`` keeps the fewest directions that are expected to
# hold the accuracy within ``compression_tol``.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.displays import EmbeddingDisplay, SpectrumDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
clf = SoftRankMLPClassifier(temperature=10, max_epochs=20, random_state=0)
clf.fit(X_train, y_train)
print(f"accuracy {clf.score(X_test, y_test):.3f}, {clf.n_components_} columns")

# %%
# Search among fewer numbers
# --------------------------
# ``compress`` chooses another size without training. In single precision a row takes
# four bytes a column.


def neighbours(Z_train, Z_test):
    """Return the accuracy of five nearest neighbours."""
    return KNeighborsClassifier(5).fit(Z_train, y_train).score(Z_test, y_test)


sizes = {
    "pixels": (X_train, X_test),
    "embedding": (clf.embed(X_train), clf.embed(X_test)),
}
for n_components in ("auto", 16, 6):
    clf.compress(X_train, y_train, n_components=n_components)
    name = f"transform, {n_components}"
    sizes[name] = (clf.transform(X_train), clf.transform(X_test))
for name, (Z_train, Z_test) in sizes.items():
    width = Z_train.shape[1]
    size = f"{width:4} columns {4 * width:5} bytes a row"
    print(f"{name:16} {size}, accuracy {neighbours(Z_train, Z_test):.3f}")

# %%
# What goes into the index
# ------------------------
# Any index takes ``transform(X)`` as it is; ``transform(X, out=...)`` fills an array of
# your own, such as a memory map. New classes need directions that the known ones did
# not ask for: if they are to be found too, keep more columns, and train at a lower
# temperature.
clf.compress(X_train, y_train, n_components="auto")
index = np.empty((len(X_train), clf.n_components_), dtype=np.float32)
clf.transform(X_train.astype(np.float32), out=index)
print(index.nbytes, "bytes in all")

# %%
# What was kept
# -------------
# The ring marks the last direction that is kept. To the right the two strongest.
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
SpectrumDisplay.from_estimator(clf, ax=axes[0])
EmbeddingDisplay.from_estimator(clf, X_test, y_test, ax=axes[1])
plt.show()
