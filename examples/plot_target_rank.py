"""
How do I get an embedding of a given rank?
==========================================

Name the rank, and ``fit`` finds the temperature that leads to it. The rank counts the
singular values of the training embedding above a hundredth of the largest.
"""

# %%
# Two ranks, one parameter
# ------------------------
# A few trainings on the way find the temperature, so ``fit`` takes so many times as
# long. It comes near the rank, not always to it: ``rank_`` is what was reached, and a
# warning tells of more than a tenth. A rank that no temperature leads to, or that would
# cost accuracy, is an error that says what there is.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.displays import SpectrumDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)

figure, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
for curve, target in enumerate((60, 40)):
    clf = SoftRankMLPClassifier(target_rank=target, max_epochs=20, random_state=0)
    clf.fit(X_train, y_train)
    name = f"asked for {target}, T = {clf.temperature_:.3g}"
    SpectrumDisplay.from_estimator(clf, name=name, ax=ax, curve=curve)
    accuracy = clf.score(X_test, y_test)
    print(f"asked for {target}, got {clf.rank_}: accuracy {accuracy:.3f}")
plt.show()
