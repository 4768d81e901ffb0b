"""
Which layers does my network need?
==================================

A deep network tells the classes apart long before its last layer. ``rank_profile``
measures each layer: its ranks, and what a linear probe makes of it. ``effective_depth``
is the first layer that tells nearly what the last one can; those that follow compress.
"""

# %%
# Train a network that is too deep
# --------------------------------
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV
from sksoftrank.displays import RankProfileDisplay, TrainingDisplay
from sksoftrank.inspection import effective_depth, rank_profile
from sksoftrank.shifts import GainDrift

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
deep = SoftRankMLPClassifier(
    (64,) * 5,
    temperature=10,
    max_epochs=20,
    early_stopping=True,
    n_iter_no_change=20,
    random_state=0,
)
deep.fit(X_train, y_train)
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
TrainingDisplay.from_estimator(deep, ax=axes)
plt.show()

# %%
# Measure its layers
# ------------------
# Rows from elsewhere, and labels of another question, may come too: rank that later
# layers lose can be what those need.
drifted = GainDrift(severity=5, random_state=0).fit(X_train).transform(X_test)
profile = rank_profile(
    deep,
    X_test,
    y_test,
    domains={"gain drift": (drifted, y_test)},
    transfer={"half of the image": (X_test, (X_test[:, :32].sum(1) > 10).astype(int))},
)
for record in profile:
    print(
        f"{record['layer']:12} effective rank {record['effective_rank']:5.1f}, "
        f"probe {record['probe_accuracy']:.3f}"
    )
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
RankProfileDisplay(profile).plot(axes)
plt.show()

# %%
# Compare networks of fewer layers
# --------------------------------
# A probe says what is separable after a layer of the deep network, not what a shallower
# one learns by itself. So take the effective depth for where to begin, and compare.
print("effective depth:", effective_depth(profile))
search = StackedGridSearchCV(
    SoftRankMLPClassifier(temperature=10, max_epochs=20, random_state=0),
    {"hidden_layer_sizes": [(64,) * depth for depth in range(1, 6)]},
    cv=3,
).fit(X_train, y_train)
scores = search.cv_results_["mean_test_score"]
for depth, accuracy in enumerate(scores, start=1):
    print(f"depth {depth}: accuracy {accuracy:.3f} over the folds")
