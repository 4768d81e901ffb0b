"""Check an installed wheel: `python -P _wheel.py FILE`, where there is no clone."""

import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris

import sksoftrank
from sksoftrank.displays import SpectrumDisplay
from sksoftrank.shifts import GainDrift


def main():
    (wheel,) = sys.argv[1:]
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    installed = distribution("sksoftrank")
    assert roots == {"sksoftrank", f"sksoftrank-{installed.version}.dist-info"}, roots
    assert "sksoftrank/py.typed" in names
    assert "sksoftrank/reporting/report.html.jinja" in names
    assert not [name for name in names if name.endswith((".pyc", ".json", ".png"))]
    place = Path(sksoftrank.__file__)
    assert place.is_relative_to(sys.prefix), place
    assert sksoftrank.__version__ == installed.version
    X, y = load_iris(return_X_y=True)
    clf = sksoftrank.SoftRankMLPClassifier((16, 16), max_epochs=20, random_state=0)
    assert clf.fit(X, y).score(X, y) > 0.9
    assert np.isfinite(clf.transform(X)).all()
    search = sksoftrank.OODSearchCV(
        clf.set_params(dropout=0.1), n_trials=6, cv=2, shifts=[GainDrift()]
    )
    assert search.fit(X, y).predict(X).shape == y.shape
    assert sksoftrank.OODDetector(clf).fit(X).predict(X).shape == y.shape
    for name in sksoftrank.__all__:
        assert getattr(sksoftrank, name) is not None
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "spectrum.png"
        SpectrumDisplay.from_estimator(clf).figure_.savefig(picture)
        assert picture.stat().st_size > 0
        page = sksoftrank.report(search, Path(folder) / "search.html", X, y)
        assert "What was chosen, and why" in page.read_text(encoding="utf-8")
    command = [sys.executable, "-P", "-m", "sksoftrank", "--help"]
    assert "--target" in subprocess.check_output(command, text=True)


if __name__ == "__main__":
    main()
