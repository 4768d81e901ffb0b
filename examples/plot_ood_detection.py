"""
How do I detect out-of-distribution rows?
=========================================

A classifier gives any row one of its classes. ``OODDetector`` says which rows it should
not be trusted on, with the interface of scikit-learn's outlier detectors, and without
training anything. Here the network learns the digits 0 to 6 and meets the others.
"""

# %%
# Hold back rows for the threshold
# --------------------------------
# The threshold is for new rows, so it is best set on rows that the network has not
# seen.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sksoftrank import OODDetector, SoftRankMLPClassifier
from sksoftrank.displays import EmbeddingDisplay
from sksoftrank.ood import detection_report

X, y = load_digits(return_X_y=True)
X = X / 16
known = y < 7
X_train, X_held, y_train, y_held = train_test_split(
    X[known], y[known], test_size=0.4, random_state=0
)
X_fit, X_new, y_fit, y_new = train_test_split(
    X_held, y_held, test_size=0.5, random_state=0
)
clf = SoftRankMLPClassifier(max_epochs=20, random_state=0).fit(X_train, y_train)

# %%
# Compare the methods
# -------------------
# "energy" reads the logits, the others the embedding too. AUROC is the chance that a
# new row of the known digits scores higher than one of the others.
scores = {}
for method in ("msp", "energy", "knn", "mahalanobis", "vim"):
    detector = OODDetector(clf, method=method).fit(X_fit, y_fit)
    scores[method] = (
        detector.score_samples(X_new),
        detector.score_samples(X[~known]),
        detector.offset_,
    )
    report = detection_report(*scores[method][:2])
    print(f"{method:12} AUROC {report['auroc']:.3f}, FPR {report['fpr_at_tpr']:.3f}")

# %%
# Look at the scores
# ------------------
# Rows left of the line are called outliers: ``predict`` gives -1.
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for ax, method in zip(axes, ("energy", "knn"), strict=True):
    own, other, offset = scores[method]
    low = min(own.min(), other.min())
    bins = [low + (own.max() - low) * k / 30 for k in range(31)]
    ax.hist(own, bins, density=True, color="#0072B2", alpha=0.7, label="digits 0 to 6")
    style = {"histtype": "step", "lw": 2, "color": "#D55E00"}
    ax.hist(other, bins, density=True, label="7 to 9", **style)
    ax.axvline(offset, color="black", ls=":", label="threshold")
    ax.set(xlabel=f"score of {method}", ylabel="density")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
plt.show()

# %%
# Look at the rows
# ----------------
# Two directions only; hollow markers are digits that the network has never seen.
figure, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
EmbeddingDisplay.from_estimator(
    clf,
    X_new,
    y_new,
    X_shifted=X[~known][:150],
    y_shifted=y[~known][:150],
    ax=ax,
)
plt.show()
