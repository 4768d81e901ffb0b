"""
Which softmax temperature should I use?
=======================================

For accuracy on rows like those you train on: the default. For a small embedding: as
high as accuracy allows. Under a shift: search it, as :ref:`another example
<sphx_glr_gallery_plot_distribution_shift.py>` does. A sweep shows what a temperature
does to your data.
"""

# %%
# Train at some temperatures
# --------------------------
# Each temperature is trained with several seeds, and each network is scored on the test
# rows, and on shifted copies of them. Networks train together, as one stack.
import matplotlib.pyplot as plt

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.datasets import load_digits_shift
from sksoftrank.displays import SpectrumDisplay, TemperatureSweepDisplay
from sksoftrank.inspection import summarize_sweep, temperature_sweep

digits = load_digits_shift()
test = (digits.X_test, digits.y_test)
shifted = {name: (X, digits.y_test) for name, X in digits.X_shifted.items()}
records = temperature_sweep(
    SoftRankMLPClassifier((64, 64, 64), max_epochs=15),
    train=(digits.X_train, digits.y_train),
    test=test,
    shifted=shifted,
    temperatures=(0.3, 1, 10, 100),
    n_seeds=3,
)
rows = summarize_sweep(records)

# %%
# Look at rank and accuracy together
# ----------------------------------
# Bands are intervals over the seeds. A network that has not learnt yet has a low rank
# for the wrong reason, so never read the rank without the accuracy.
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
TemperatureSweepDisplay(rows).plot(axes)
plt.show()

# %%
# Directions that fade
# --------------------
# At a high temperature the singular values of the embedding fall faster.
figure, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
for curve, temperature in enumerate((1, 100)):
    clf = SoftRankMLPClassifier(
        (64, 64, 64), temperature=temperature, max_epochs=15, random_state=0
    )
    clf.fit(digits.X_train, digits.y_train)
    SpectrumDisplay.from_estimator(clf, ax=ax, curve=curve)
plt.show()
