"""Time of normalised networks, stacked and alone, over skorch's loop.

MLP 128-128 on 5,000 rows of 16 columns, 10 epochs; time per network. In a stack eight
train together. All without the basis of `transform`.
"""

from __future__ import annotations

import torch
from _common import ByBatches, interleaved, parser, plain_mlp, ratios, write
from sklearn.datasets import make_classification

from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked

N_STACKED = 8


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--turns", type=int, default=5)
    args = p.parse_args()
    torch.set_num_threads(1)
    X, y = make_classification(5000, 16, n_informative=12, n_classes=10, random_state=0)
    X = X.astype("float32")

    def fits(normalization, n=1, callbacks=None):
        fit_stacked(
            [
                PendingFit(
                    plain_mlp(
                        max_epochs=10,
                        temperature=2.0,
                        normalization=normalization,
                        callbacks=callbacks,
                        random_state=seed,
                    ),
                    X,
                    y,
                )
                for seed in range(n)
            ],
            basis_rows=0,
        )

    results = {}
    for kind in (None, "layer", "batch"):
        times = interleaved(
            {
                "skorch": lambda kind=kind: fits(kind, callbacks=[ByBatches()]),
                "alone": lambda kind=kind: fits(kind),
                "stacked": lambda kind=kind: fits(kind, N_STACKED),
            },
            args.turns,
        )
        over = ratios(times, "skorch")
        over["stacked"] /= N_STACKED
        results[str(kind)] = over
        print(
            f"normalization={kind}: {over['alone']:.2f} of skorch's time alone, "
            f"{over['stacked']:.2f} in a stack of {N_STACKED}",
            flush=True,
        )
    write("normalized_speed", results, turns=args.turns)


if __name__ == "__main__":
    main()
