"""Peak memory of an 80-network search, against what it announces and GridSearchCV.

Each search runs in a process of its own; memory is the peak above what the process held
before the search. GridSearchCV's two worker processes count in full beyond what an idle
worker with the same imports holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser, plain_mlp, write

CASES = (  # rows, columns, classes, hidden layers
    (10_000, 16, 26, (128, 128)),
    (100_000, 100, 10, (128, 128)),
    (10_000, 16, 26, (1024, 1024)),
)


def held(pid: int | str = "self") -> int:
    """Return the bytes of anonymous memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


class Peak:
    """Samples the memory of this process and its children while it is entered."""

    def __enter__(self) -> Peak:
        self.bytes, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.is_set():
            children = Path("/proc/self/task").glob("*/children")
            pids = [pid for path in children for pid in path.read_text().split()]
            total = held()
            for pid in pids:
                try:
                    total += held(pid)
                except OSError:  # It has just ended.
                    continue
            self.bytes = max(self.bytes, total)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def search(kind: str, case: list[Any]) -> dict[str, int]:
    """Run one search in this process and return its memory."""
    from sklearn.model_selection import GridSearchCV

    from sksoftrank import StackedGridSearchCV

    n, d, c, hidden = case
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    y = (X @ rng.standard_normal((d, c), dtype=np.float32)).argmax(axis=1)
    clf = plain_mlp(hidden, max_epochs=1, random_state=0)
    settings: dict[str, Any] = {"cv": 5, "n_jobs": 2, "refit": False}
    small = slice(20 * c)
    grid = {"temperature": np.geomspace(0.3, 100, 16).tolist()}
    kinds = {"ours": StackedGridSearchCV, "GridSearchCV": GridSearchCV}
    # Imports and worker processes are there before the search.
    kinds[kind](clf, {"temperature": [1.0, 2.0]}, **settings).fit(X[small], y[small])
    with Peak() as idle:
        time.sleep(0.1)
    with Peak() as peak:
        done = kinds[kind](clf, grid, **settings).fit(X, y)
    return {
        "peak": peak.bytes - idle.bytes,
        "announced": getattr(done, "stack_bytes_", 0),
        "data": X.nbytes,
    }


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--one", nargs=2, help="run one search: its kind and case, as JSON")
    args = p.parse_args()
    if args.one:
        print(json.dumps(search(args.one[0], json.loads(args.one[1]))))
        return
    rows = []
    for case in CASES:
        row: dict[str, Any] = {"case": case}
        for kind in ("ours", "GridSearchCV"):
            out = subprocess.run(
                [sys.executable, __file__, "--one", kind, json.dumps(case)],
                capture_output=True,
                text=True,
                check=True,
            )
            row[kind] = json.loads(out.stdout)
        ours, rival = row["ours"], row["GridSearchCV"]
        rows.append(row)
        print(
            f"{case}: {ours['peak'] / 2**20:.0f} MB at the peak, "
            f"{ours['announced'] / 2**20:.0f} MB announced, data "
            f"{ours['data'] / 2**20:.0f} MB; {ours['peak'] / rival['peak']:.2f}x "
            "of GridSearchCV(n_jobs=2)'s",
            flush=True,
        )
    write("search_memory", rows)


if __name__ == "__main__":
    main()
