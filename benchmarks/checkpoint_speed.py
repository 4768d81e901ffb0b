"""What a checkpoint costs: time of a fit that writes one over that of a fit without.

The default network, its choice of strength included, on 2,000 rows; and ten epochs on
30,000 rows, one fit after the other in turn.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from _common import hold_threads, interleaved, parser, ratios, write
from sklearn.datasets import make_classification

from sksoftrank import SoftRankMLPClassifier


def main():
    p = parser(__doc__)
    p.set_defaults(threads=1)
    p.add_argument("--rows", type=int, nargs="+", default=[2_000, 30_000])
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    hold_threads(args.threads)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for n_rows in args.rows:
            X, y = make_classification(
                n_rows, 20, n_informative=10, n_classes=5, random_state=0
            )
            X = X.astype(np.float32)
            lengths = {} if n_rows <= 2_000 else {"max_epochs": 10, "dropout": 0.1}
            network = partial(SoftRankMLPClassifier, random_state=0, **lengths)
            fits = {
                "without": network(),
                "with": network(checkpoint=Path(folder) / "fit"),
            }
            tasks = {name: partial(clf.fit, X, y) for name, clf in fits.items()}
            times = interleaved(tasks, args.repeats)
            results[f"{n_rows} rows"] = ratio = ratios(times, "without")["with"]
            print(f"{n_rows} rows: with a checkpoint {ratio:.2f} of the time without")
    write("checkpoint_speed", results, repeats=args.repeats, seed=0)


if __name__ == "__main__":
    main()
