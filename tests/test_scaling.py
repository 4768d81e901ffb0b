"""The Python of docs/scaling.md runs, and what it says of the storages is so."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pytest
from sklearn.base import clone

pytest_plugins = ["_postgres"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
TEXT = PAGE.read_text(encoding="utf-8")
SEARCH, PROXY, DASK, END = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)


def run(source, folder, *argv, **names):
    """Run a block where it may leave files; return the names that it sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["search.py", *argv])
        exec(compile(source, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Return the folder and the names of the script, run once on a file."""
    folder = tmp_path_factory.mktemp("script")
    return folder, run(SEARCH, folder, "study.db")


def test_the_script_joins_the_study_that_is_there(script):
    folder, names = script
    assert (folder / "study.db").is_file()
    one, other = names["search"], run(SEARCH, folder, "study.db")["search"]
    assert one.best_params_ == other.best_params_
    numbers = one.cv_results_["trial"].tolist()
    assert numbers == other.cv_results_["trial"].tolist() == list(range(16))


@pytest.mark.postgres
def test_the_script_on_postgresql(server, script, tmp_path):
    search = run(SEARCH, tmp_path, server.url)["search"]
    assert search.best_params_ == script[1]["search"].best_params_


@pytest.mark.skipif(find_spec("grpc") is None, reason="grpcio is not installed")
@pytest.mark.filterwarnings("ignore:GrpcStorageProxy is experimental")
def test_the_storages_of_optuna(tmp_path):
    proxy = run(PROXY, tmp_path)["storage"]
    assert isinstance(proxy, optuna.storages.GrpcStorageProxy)
    proxy.close()


def test_fits_on_a_dask_cluster_score_the_same(script, tmp_path):
    distributed = pytest.importorskip("distributed")
    names = dict(script[1])
    scores = names["search"].cv_results_["mean_test_score"][:6].tolist()
    names["search"] = clone(names["search"]).set_params(storage=None, n_trials=6)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        source = DASK.replace("tcp://127.0.0.1:8786", cluster.scheduler_address)
        run(source, tmp_path, **names)
    # Some kernels round products otherwise in another thread than the first, and rows
    # near a tie may then fall either way: a row of a fold is 0.0003 of a score.
    found = names["search"].cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, scores, atol=0.005)


def test_a_trial_that_nobody_runs_can_be_ended(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="OODSearchCV", storage=storage)
    for _ in range(13):
        study.ask()
    run(END, tmp_path, storage=storage)
    assert study.trials[12].state == optuna.trial.TrialState.FAIL


def test_what_trials_hold_is_what_the_page_says(script):
    trials = script[1]["search"].study_.trials
    told = {name for trial in trials for name in trial.user_attrs}
    assert told <= {*re.findall(r"^\| `(sksoftrank:\w+)`", TEXT, re.M)}


def test_lines_and_links():
    blocks = re.findall(r"^```\w+\n(.*?)^```$", TEXT, re.M | re.S)
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 88
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert all((PAGE.parent / link).is_file() for link in links)
    assert "(docs/scaling.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
