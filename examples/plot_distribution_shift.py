"""
How do I tune a classifier for distribution shift?
==================================================

Cross-validation on the rows at hand says little of rows from elsewhere. If you have
some labelled rows under a shift, ``OODSearchCV`` scores candidates on them, and never
trains on them. It weighs the accuracy without a shift beside it, and keeps the baseline
unless something is better with fresh seeds.
"""

# %%
# Three sets of rows
# ------------------
# Sensors that lose their calibration are made here by scaling each column. One drift is
# searched on. The report is on other draws, and on a kind of shift that the search did
# not see.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sksoftrank import OODSearchCV, SoftRankMLPClassifier
from sksoftrank.displays import OODReportDisplay, OODSearchDisplay
from sksoftrank.shifts import GainDrift, OffsetDrift

X, y = load_digits(return_X_y=True)
X_train, X_rest, y_train, y_rest = train_test_split(
    X / 16, y, train_size=600, random_state=0
)
X_ood, X_test, y_ood, y_test = train_test_split(
    X_rest, y_rest, train_size=400, random_state=0
)
drift = GainDrift(severity=4, random_state=1).fit(X_train)

# %%
# Search
# ------
# A trial here is a network of a few epochs; take more of both for your own data.
search = OODSearchCV(
    SoftRankMLPClassifier(64, max_epochs=15),
    n_trials=24,
    cv=2,
    random_state=0,
)
search.fit(X_train, y_train, X_ood=drift.transform(X_ood), y_ood=y_ood)
print(search.best_params_)
print(search.best_reason_)

# %%
# What was tried, and what was chosen
# -----------------------------------
# Up is better under the shift, right is better without one. Configurations that hardly
# learnt lie outside the picture.
figure, ax = plt.subplots(figsize=(6.5, 5), layout="constrained")
OODSearchDisplay.from_estimator(search, ax=ax)
ax.set(xlim=(80, 100), ylim=(70, 100))
plt.show()

# %%
# Report on what the search has not seen
# --------------------------------------
figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
OODReportDisplay.from_estimator(
    search.best_estimator_,
    X_test,
    y_test,
    [GainDrift(random_state=7), OffsetDrift(random_state=7)],
    severities=(1, 3, 5),
    ax=ax,
)
plt.show()
