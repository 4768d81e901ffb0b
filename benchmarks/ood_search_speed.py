"""Time of OODSearchCV against OptunaSearchCV over the same space, network and epochs.

64 trials of the MLP 128-128 on 5,000 rows of 16 columns, 26 classes, each scored over
three seeds by OODSearchCV (a split, three random states) and over three folds by
OptunaSearchCV: as many fits of as many rows. OptunaSearchCV is given our estimator; the
same through skorch's epochs, which a callback on batches asks for; and stock skorch.
All use two cores. None refits.
"""

from __future__ import annotations

import warnings

import optuna
import torch
from _common import ByBatches, interleaved, parser, plain_mlp, ratios, write
from optuna.distributions import FloatDistribution
from optuna_integration import OptunaSearchCV
from sklearn.datasets import make_classification
from sklearn.model_selection import ShuffleSplit
from skorch import NeuralNetClassifier
from stacked_speed import N_CLASSES, N_FEATURES, Network
from torch import nn

from sksoftrank import OODSearchCV
from sksoftrank.shifts import GainDrift

SPACE = {
    "temperature": FloatDistribution(0.3, 100.0, log=True),
    "learning_rate": FloatDistribution(3e-4, 3e-2, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
}
TEST_SHARE = 1 / 3


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--trials", type=int, default=64)
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--rows", type=int, default=5000)
    p.add_argument("--turns", type=int, default=3)
    args = p.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    X, y = make_classification(
        args.rows, N_FEATURES, n_informative=12, n_classes=N_CLASSES, random_state=0
    )
    X = X.astype("float32")

    def network(**params):
        return plain_mlp(max_epochs=args.epochs, random_state=0, **params)

    def ours():
        OODSearchCV(
            network(),
            SPACE,
            # As many fits as the rival, with those of the second stage.
            n_trials=args.trials - 2,
            n_finalists=1,
            n_final_seeds=1,
            cv=ShuffleSplit(3, test_size=TEST_SHARE, random_state=0),
            shifts=[GainDrift(3, random_state=0)],
            n_jobs=2,
            random_state=0,
            refit=False,
        ).fit(X, y)

    def theirs(estimator, space):
        OptunaSearchCV(
            estimator,
            space,
            n_trials=args.trials,
            cv=3,
            n_jobs=2,
            random_state=0,
            refit=False,
        ).fit(X, y)

    stock = NeuralNetClassifier(
        Network,
        module__hidden=(128, 128),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        max_epochs=args.epochs,
        batch_size=128,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    )
    names = ("module__temperature", "lr", "optimizer__weight_decay")
    stock_space = dict(zip(names, SPACE.values(), strict=True))
    followed = network(callbacks=[ByBatches()])
    times = interleaved(
        {
            "ours": ours,
            "optuna, our fits": lambda: theirs(network(), SPACE),
            "optuna, our fits through skorch": lambda: theirs(followed, SPACE),
            "optuna, stock skorch": lambda: theirs(stock, stock_space),
        },
        args.turns,
        pause=0.5,
    )
    over = ratios(times, "ours")
    for name, ratio in over.items():
        print(f"{name}: {ratio:.2f} times as long as OODSearchCV")
    write(
        "ood_search_speed",
        over,
        trials=args.trials,
        epochs=args.epochs,
        rows=args.rows,
        turns=args.turns,
    )


if __name__ == "__main__":
    main()
