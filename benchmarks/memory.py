"""Peak memory of `fit` on a memory-mapped array, and on one in memory.

Each fit runs in a fresh process for an epoch, and what it holds is counted above what
the process held after its imports and, for the array in memory, above that array. Two
peaks are given: of all resident memory (VmHWM, that is ru_maxrss without what a process
inherits from its parent), in which the pages of the mapped file count once they are
read, though the system may drop them; and of the anonymous memory alone, which it can't
drop, sampled every two milliseconds. The rival is scikit-learn's MLPClassifier with the
same layers, batches and rows, in float32 too. Reads /proc: Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from _common import parser, plain_mlp, write
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

ROWS = (250_000, 500_000, 1_000_000)
COLUMNS, CLASSES = 100, 10
HIDDEN, BATCH = (128, 128), 512
SUBJECTS = ("mapped", "in_memory", "scikit_learn_mapped")
GOAL = 1.5  # Times the array's bytes, at most.


def status(*names: str) -> list[int]:
    """Return fields of the process's status, in bytes."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [1024 * int(fields[name].split()[0]) for name in names]


class _AnonymousPeak(threading.Thread):
    """Sample the anonymous memory until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, *status("RssAnon"))
            if self.stopped.wait(2e-3):
                return

    def stop(self) -> int:
        self.stopped.set()
        self.join()
        return self.peak


def measure(subject: str, folder: Path, n: int, threads: int) -> dict[str, int]:
    """Fit in this process and return the peaks, in bytes."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    X = np.memmap(folder / "X", np.float32, mode="r", shape=(n, COLUMNS))
    y = np.fromfile(folder / "y", np.int64, n)
    if subject == "in_memory":
        X = np.fromfile(folder / "X", np.float32, n * COLUMNS).reshape(n, COLUMNS)
    if subject == "scikit_learn_mapped":
        clf = MLPClassifier(HIDDEN, batch_size=BATCH, max_iter=1, random_state=0)
    else:
        clf = plain_mlp(
            hidden_layer_sizes=HIDDEN,
            batch_size=BATCH,
            max_epochs=1,
            device="cpu",
            random_state=0,
        )
    # Else the peak could be one that the imports reached and left.
    Path("/proc/self/clear_refs").write_text("5")
    total, anonymous = status("VmRSS", "RssAnon")
    sampler = _AnonymousPeak()
    sampler.start()
    clf.fit(X, y)
    anonymous_peak = sampler.stop()
    (total_peak,) = status("VmHWM")
    return {"total": total_peak - total, "anonymous": anonymous_peak - anonymous}


def write_data(folder: Path) -> None:
    """Write rows and labels piece by piece: this process stays small."""
    rng = np.random.default_rng(0)
    piece = 50_000
    with open(folder / "X", "wb") as rows, open(folder / "y", "wb") as labels:
        for _ in range(0, max(ROWS), piece):
            X = rng.standard_normal((piece, COLUMNS), dtype=np.float32)
            X.tofile(rows)
            X[:, :CLASSES].argmax(axis=1).astype(np.int64).tofile(labels)


def run(subject: str, folder: Path, n: int, threads: int) -> dict[str, int]:
    done = subprocess.run(
        [
            *(sys.executable, __file__, "--measure", subject),
            *("--folder", str(folder), "--rows", str(n), "--threads", str(threads)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def line_through(rows: np.ndarray, peaks: np.ndarray) -> dict[str, float]:
    """Return slope, intercept and the worst deviation from the line, relative to it."""
    slope, intercept = np.polyfit(rows, peaks, 1)
    fitted = slope * rows + intercept
    return {
        "slope_times_row": float(slope / (4 * COLUMNS)),
        "intercept_bytes": float(intercept),
        "worst_relative_deviation": float(np.abs(peaks / fitted - 1).max()),
    }


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--measure", choices=SUBJECTS, help="fit in this process, and end")
    p.add_argument("--folder", type=Path, help="where --measure finds the data")
    p.add_argument("--rows", type=int, help="rows that --measure fits on")
    args = p.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder, args.rows, args.threads)))
        return
    torch.set_num_threads(args.threads)
    runs: dict[tuple[str, int], list[dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        for _ in range(args.repeats):
            for n in ROWS:
                for subject in SUBJECTS:
                    peaks = run(subject, Path(name), n, args.threads)
                    runs.setdefault((subject, n), []).append(peaks)
    results = []
    for subject in SUBJECTS:
        by_kind = {}
        for kind in ("total", "anonymous"):
            peaks = [np.median([r[kind] for r in runs[subject, n]]) for n in ROWS]
            by_kind[kind] = {
                "peak_bytes": dict(zip(map(str, ROWS), peaks, strict=True)),
                "times_array": float(peaks[-1] / (4 * COLUMNS * ROWS[-1])),
                **line_through(np.array(ROWS), np.array(peaks)),
            }
            f = by_kind[kind]
            print(
                f"{subject}, {kind} memory: {f['times_array']:.2f}x the bytes of "
                f"{ROWS[-1]} x {COLUMNS} float32 rows; {f['slope_times_row']:.2f}x a "
                f"row's a row, {f['intercept_bytes'] / 1e6:+.0f} MB; off the line by "
                f"{100 * f['worst_relative_deviation']:.1f} % at most",
                flush=True,
            )
        results.append({"subject": subject, **by_kind})
    ours, rival = results[0], results[-1]
    for kind in ("total", "anonymous"):
        ratio = ours[kind]["times_array"] / rival[kind]["times_array"]
        print(f"mapped, {kind} memory: {ratio:.2f}x that of MLPClassifier")
        ours[kind]["times_scikit_learn"] = ratio
    for result in results[:2]:
        times = result["total"]["times_array"]
        verdict = "within" if times <= GOAL else "above"
        print(f"{result['subject']}: {times:.2f}x the array, {verdict} {GOAL}x")
    write("memory", results, repeats=args.repeats, seed=0, rows=ROWS, columns=COLUMNS)


if __name__ == "__main__":
    main()
