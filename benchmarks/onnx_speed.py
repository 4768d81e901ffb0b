"""Probabilities by `to_onnx` and onnxruntime against our own: time of one row, of many.

The default network (its width; trained shortly) alone and behind a StandardScaler, and
an ensemble of four, on the digits. All hold to the threads that are named. What is
printed is our time over onnxruntime's; both must give the same within 1e-5.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime
from _common import hold_threads, interleaved, parser, ratios, write
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksoftrank import SoftRankEnsembleClassifier, SoftRankMLPClassifier, to_onnx


def main():
    p = parser(__doc__)
    p.set_defaults(threads=1)
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--calls", type=int, default=200, help="of one row, in each repeat")
    args = p.parse_args()
    hold_threads(args.threads)
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    network = SoftRankMLPClassifier(max_epochs=5, dropout=0.1, random_state=0)
    models = {
        "network": network,
        "pipeline": make_pipeline(StandardScaler(), network),
        "ensemble": SoftRankEnsembleClassifier(network, 4, random_state=0),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = args.threads
    results = {}
    for name, model in models.items():
        model.fit(X, y)
        session = onnxruntime.InferenceSession(
            to_onnx(model).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        (field,) = session.get_inputs()

        def infer(rows, session=session, field=field.name):
            return session.run(None, {field: rows})[0]

        difference = float(np.abs(infer(X) - model.predict_proba(X)).max())
        results[name] = {"largest_difference": difference}
        for n_rows, n_calls in ((1, args.calls), (len(X), max(args.calls // 20, 1))):
            rows = X[:n_rows]

            def repeat(predict, rows=rows, n_calls=n_calls):
                for _ in range(n_calls):
                    predict(rows)

            tasks = {
                "ours": partial(repeat, model.predict_proba),
                "onnxruntime": partial(repeat, infer),
            }
            times = interleaved(tasks, args.repeats)
            ratio = 1 / ratios(times, "ours")["onnxruntime"]
            micros = {k: 1e6 * float(np.median(v)) / n_calls for k, v in times.items()}
            results[name][f"{n_rows} rows"] = {"ours_over_it": ratio, "us": micros}
            print(
                f"{name}, {n_rows} rows: ours {ratio:.2f} of onnxruntime's time "
                f"({micros['ours']:.0f} and {micros['onnxruntime']:.0f} us)",
                flush=True,
            )
        print(f"  largest difference {difference:.1e}")
    write("onnx_speed", results, repeats=args.repeats, calls=args.calls, seed=0)


if __name__ == "__main__":
    main()
