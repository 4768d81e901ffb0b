"""Rows that come in passes: torch datasets, Arrow, memory maps larger than a batch."""

import decimal
import gc
import itertools
import pickle
import tracemalloc
import weakref

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from _plain import PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from skorch.callbacks import Callback
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from sksoftrank import (
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankNet,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
)
from sksoftrank.estimators import _sources
from sksoftrank.modules import MLP
from sksoftrank.training import (
    InMemoryBatches,
    InMemoryDataset,
    StreamBatches,
    StreamDataset,
    make_batches,
)
from sksoftrank.training._stream import sample_stream


class Rows(IterableDataset):
    """Pairs that can be read again and again."""

    def __init__(self, X, y=None):
        self.X, self.y = X, y

    def __iter__(self):
        yield from self.X if self.y is None else zip(self.X, self.y, strict=True)


class Items(Dataset):
    """The same, by index."""

    def __init__(self, X, y=None):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i] if self.y is None else (self.X[i], self.y[i])


class Passes(IterableDataset):
    """What a function gives for each pass, counted from zero."""

    def __init__(self, make):
        self.make, self.n_passes = make, 0

    def __iter__(self):
        self.n_passes += 1
        return iter(self.make(self.n_passes - 1))


def make(**params):
    fast = {"hidden_layer_sizes": (16, 8), "max_epochs": 4, "batch_size": 16}
    return SoftRankMLPClassifier(**{**PLAIN, **fast, "random_state": 0, **params})


def table(X, y, **columns):
    names = {f"f{i}": column for i, column in enumerate(np.asarray(X).T)}
    return pa.table({**names, "label": y, **columns})


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


def stream_of(sizes, batch_size=4, **params):
    n = sum(sizes)
    X, codes = np.arange(n, dtype=np.float64)[:, None], np.arange(n)
    bounds = np.cumsum([0, *sizes])
    pairs = [(X[a:b], codes[a:b]) for a, b in itertools.pairwise(bounds)]
    dataset = StreamDataset(lambda: iter(pairs), n)
    return StreamBatches(dataset, batch_size, **params)


# -- Batches ---------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([None, 0]),
)
def test_every_row_comes_once_a_pass(sizes, batch_size, least, shuffle, seed):
    n = sum(sizes)
    batches = stream_of(
        sizes, batch_size, shuffle=shuffle, random_state=seed, min_batch_size=least
    )
    # scikit-learn leaves no smaller batch either.
    expected = gen_batches(n, batch_size, min_batch_size=min(least, n))
    expected = [part.stop - part.start for part in expected]
    for _ in range(2):
        pairs = list(batches)
        assert [len(y) for _, y in pairs] == expected
        assert len(batches) == len(expected)
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        assert x.dtype == torch.float32
        assert torch.equal(x[:, 0].long(), y)
        assert sorted(y.tolist()) == list(range(n))
        if not shuffle:
            assert y.tolist() == list(range(n))


def test_each_pass_has_its_own_order_and_a_seed_repeats_them():
    def orders(seed):
        batches = stream_of([70, 30, 100], shuffle=True, random_state=seed)
        return [torch.cat([y for _, y in batches]).tolist() for _ in range(2)]

    assert orders(0) == orders(0)
    assert orders(0)[0] != orders(0)[1]
    assert orders(0) != orders(1)


def test_what_fits_into_the_buffer_comes_as_from_memory():
    sizes = [30, 50, 21]
    X = np.arange(101.0)[:, None]
    memory = InMemoryBatches(
        InMemoryDataset(X, np.arange(101)), 4, shuffle=True, random_state=7
    )
    stream = stream_of(sizes, shuffle=True, random_state=7)
    for _ in range(2):
        for (x, y), (x2, y2) in zip(memory, stream, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_the_buffer_mixes_rows_of_distant_chunks():
    # 1,000 rows in chunks of 10 through a buffer of 128.
    batches = stream_of([10] * 100, shuffle=True, random_state=0)
    first = torch.cat([y for _, y in batches])[:100]
    assert first.max() > 150
    assert first.min() < 20
    assert not torch.equal(first, first.sort().values)


def test_bytes_stay_bytes_until_a_batch():
    X = np.arange(40, dtype=np.uint8).reshape(20, 2)
    seen = []

    def chunks():
        yield X[:10], np.arange(10)
        yield X[10:].astype(float), np.arange(10, 20)

    batches = StreamBatches(StreamDataset(chunks, 20), 4, shuffle=True, random_state=0)
    for x, y in batches:
        assert x.dtype == torch.float32
        seen += y.tolist()
        np.testing.assert_array_equal(x.numpy(), X[y.numpy()])
    assert sorted(seen) == list(range(20))


def test_class_weights_come_with_their_rows():
    pairs = [(np.zeros((3, 1)), np.array([0, 1, 1]))]
    dataset = StreamDataset(lambda: iter(pairs), 3, np.array([0.5, 2.0]))
    ((_, (_, weight)),) = StreamBatches(dataset)
    assert weight.dtype == torch.float32
    assert weight.tolist() == [0.5, 2.0, 2.0]
    loaded = [
        (y.tolist(), w.tolist())
        for _, (y, w) in make_batches(dataset, 2, num_workers=0)
    ]
    assert loaded == [([0, 1], [0.5, 2.0]), ([1], [2.0])]


@pytest.mark.parametrize("n_announced", [5, 7])
def test_a_pass_of_another_length_is_an_error(n_announced):
    pairs = [(np.zeros((3, 1)), np.arange(3))] * 2
    dataset = StreamDataset(lambda: iter(pairs), n_announced)
    with pytest.raises(ValueError, match=f"6 rows.* gave {n_announced}"):
        list(StreamBatches(dataset, 2))
    with pytest.raises(ValueError, match="X must yield the same rows"):
        list(dataset)


def test_a_stream_that_goes_on_forever_is_stopped():
    def chunks():
        while True:
            yield np.zeros((3, 1)), np.arange(3)

    with pytest.raises(ValueError, match="or more where a pass before gave 6"):
        list(StreamBatches(StreamDataset(chunks, 6), 2))


class Counting:
    """Starts passes; its codes are the rows' numbers. Workers get a copy of it."""

    def __call__(self):
        for start in (0, 5):
            yield np.arange(start, start + 5.0)[:, None], np.arange(start, start + 5)


def test_workers_of_a_dataloader_share_the_rows():
    loader = make_batches(StreamDataset(Counting(), 10), 2, num_workers=2)
    pairs = list(loader)
    assert sorted(torch.cat([y for _, y in pairs]).tolist()) == list(range(10))
    assert all(x.dtype == torch.float32 for x, _ in pairs)


def test_a_dataloader_gives_single_precision_as_memory_does(blobs):
    X, y = blobs
    clf = make(
        net_params={"iterator_train__num_workers": 0},
        class_weight={0: 2.0},
        learning_rate=0.02,
    )
    assert clf.fit(X, y).score(X, y) > 0.5
    (x, _), *_ = make_batches(InMemoryDataset(X, y), 4, num_workers=0)
    assert x.dtype == torch.float32


def test_the_sample_is_uniform():
    counts = np.zeros(60)
    for seed in range(400):
        sizes = np.random.default_rng(seed).integers(1, 15, 30)
        bounds = [0, *np.cumsum(sizes)[np.cumsum(sizes) < 60], 60]
        rows = np.arange(60)
        chunks = ((rows[a:b, None], rows[a:b]) for a, b in itertools.pairwise(bounds))
        X, codes = sample_stream(chunks, 12, seed)
        assert len(set(codes.tolist())) == 12
        np.testing.assert_array_equal(X[:, 0], codes)
        counts[codes] += 1
    # Inclusion without replacement varies less than chi-square allows for: the upper
    # tail is then a safe one.
    assert stats.chisquare(counts).pvalue > 0.01


def test_a_sample_larger_than_the_stream_is_the_stream():
    chunks = ((np.zeros((3, 1)), np.arange(i, i + 3)) for i in (0, 3))
    _, codes = sample_stream(chunks, 100, 0)
    assert codes.tolist() == list(range(6))


# -- Fitting ---------------------------------------------------------------------------


def sources(X, y, tmp_path):
    frame = table(X, y)
    pa.parquet.write_table(frame, tmp_path / "rows.parquet", row_group_size=50)
    return {
        "iterable": (Rows(X, y), None),
        "map": (Items(X, y), None),
        "tensors": (TensorDataset(torch.tensor(X), torch.tensor(y)), None),
        "table": (frame, "label"),
        "parquet": (pyarrow.dataset.dataset(tmp_path), "label"),
    }


@pytest.mark.parametrize("kind", ["iterable", "map", "tensors", "table", "parquet"])
def test_a_stream_trains_as_arrays_do(blobs, tmp_path, kind):
    X, y = blobs
    X, y = X[::-1].copy(), y[::-1].copy()
    stream, target = sources(X, y, tmp_path)[kind]
    expected = make(temperature=3.0).fit(X, y)
    clf = make(temperature=3.0).fit(stream, target)
    # The buffer holds all of it: the same rows in the same order.
    np.testing.assert_allclose(weights(clf), weights(expected), atol=1e-5)
    assert clf.temperature_ == 3.0
    assert len(clf.history_) == 4
    assert clf.n_features_in_ == 6
    assert clf.n_components_ == expected.n_components_
    np.testing.assert_allclose(
        clf.singular_values_, expected.singular_values_, rtol=1e-3
    )
    rows = X
    if target is not None:
        rows = pd.DataFrame(X, columns=clf.feature_names_in_)
    np.testing.assert_array_equal(clf.predict(rows), expected.predict(X))
    # Again: the same numbers, bit by bit.
    again = clone(clf).fit(stream, target)
    assert weights(again).tobytes() == weights(clf).tobytes()
    assert clf.score(stream, target) == expected.score(X, y)


def test_a_long_stream_sorted_by_class_is_learned(blobs):
    X, y = blobs
    X, y = np.repeat(X, 3, axis=0), np.repeat(y, 3)
    # A buffer of 128 of 360.
    clf = make(batch_size=4, max_epochs=8, learning_rate=0.01).fit(Rows(X, y))
    assert clf.score(X, y) > 0.9


def test_a_long_streams_seed_matters(blobs):
    X, y = blobs
    fits = [
        make(batch_size=2, max_epochs=1, random_state=s).fit(Rows(X, y))
        for s in (0, 0, 1)
    ]
    assert weights(fits[0]).tobytes() == weights(fits[1]).tobytes()
    assert not np.array_equal(weights(fits[0]), weights(fits[2]))


@pytest.mark.parametrize("names", [["a", "b", "c"], [True, False]], ids=str)
@pytest.mark.parametrize("kind", ["rows", "table", "dictionary"])
def test_labels(blobs, names, kind):
    X, y = blobs
    y = y % len(names)
    labels = np.array(names)[y]
    if kind == "rows":
        clf = make(learning_rate=0.03).fit(Rows(X, labels.tolist()))
        pred = clf.predict(Rows(X))
    else:
        frame = table(X, labels.tolist())
        if kind == "dictionary":
            column = frame.column("label").dictionary_encode()
            frame = frame.set_column(6, "label", column)
        clf = make(learning_rate=0.03).fit(frame, "label")
        pred = clf.predict(frame)
        assert clf.score(frame, "label") == (pred == labels).mean()
    assert clf.classes_.tolist() == sorted(names)
    assert set(pred.tolist()) <= set(names)
    assert (pred == labels).mean() > 0.8


def test_tensor_labels(blobs):
    X, y = blobs
    pairs = [
        (torch.tensor(x), torch.tensor([label])) for x, label in zip(X, y, strict=True)
    ]
    assert make().fit(Passes(lambda i: pairs)).classes_.tolist() == [0, 1, 2]


def test_many_classes_in_a_small_chunk_do_not_warn(monkeypatch):
    monkeypatch.setattr(_sources, "CHUNK_ROWS", 25)
    y = np.tile(np.arange(25), 4)  # Each chunk has each class once.
    X = np.random.default_rng(0).normal(size=(100, 3))
    assert len(make(max_epochs=1).fit(Rows(X, y)).classes_) == 25


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weight_equals_that_of_arrays(blobs, class_weight):
    X, y = blobs
    X, y = X[:90], y[:90]
    expected = make(class_weight=class_weight).fit(X, y)
    clf = make(class_weight=class_weight).fit(Rows(X, y))
    np.testing.assert_allclose(weights(clf), weights(expected), atol=1e-5)
    plain = make().fit(Rows(X, y))
    assert np.abs(weights(plain) - weights(clf)).max() > 1e-3


def test_class_weight_in_partial_fit_knows_absent_classes(blobs):
    X, y = blobs
    part = y < 2
    pairs = make(class_weight={1: 4.0, 2: 0.5}), make(class_weight={1: 4.0, 2: 0.5})
    pairs[0].partial_fit(X[part], y[part], classes=[0, 1, 2])
    pairs[1].partial_fit(Rows(X[part], y[part]), classes=[0, 1, 2])
    np.testing.assert_allclose(weights(pairs[1]), weights(pairs[0]), atol=1e-5)


def test_class_weights_of_zero_everywhere(blobs):
    with pytest.raises(ValueError, match="class_weight must leave some row"):
        make(class_weight=dict.fromkeys(range(3), 0.0)).fit(Rows(*blobs))


def test_batch_normalization_survives_a_last_row(blobs):
    X, y = blobs
    clf = make(normalization="batch").fit(Rows(X[:113], y[:113]))  # 7 * 16 + 1.
    assert np.isfinite(weights(clf)).all()
    with pytest.raises(ValueError, match="must both be at least 2"):
        make(normalization="batch", batch_size=1).fit(Rows(X, y))


def test_images(digits):
    X, X_test, y, y_test = digits
    images = X[:600].reshape(-1, 1, 8, 8).astype(np.float32)
    clf = SoftRankCNNClassifier(
        (8, 16), batch_size=32, max_epochs=4, learning_rate=0.01, random_state=0
    )
    clf.fit(Items(images, y[:600]))
    assert clf.input_shape_ == (1, 8, 8)
    assert clf.n_features_in_ == 64
    tests = X_test.reshape(-1, 1, 8, 8).astype(np.float32)
    assert clf.score(tests, y_test) > 0.8
    for rows in (tests, tests.reshape(-1, 64)):
        assert (clf.predict(Items(rows)) == clf.predict(tests)).mean() > 0.99
    with pytest.raises(ValueError, match=r"rows of shape \(1, 8, 8\), got \(8, 8, 1\)"):
        clf.predict(Items(tests.reshape(-1, 8, 8, 1)))
    before = weights(clf).tobytes()
    with pytest.raises(ValueError, match=r"rows of shape \(1, 8, 8\)"):
        clf.partial_fit(Items(tests.reshape(-1, 8, 8, 1), y_test))
    assert weights(clf).tobytes() == before


def test_pixels_as_bytes_give_what_numbers_give(digits):
    X, _, y, _ = digits
    pixels = (X[:300] * 16).astype(np.uint8)
    clf, expected = make(), make()
    clf.fit(Rows(pixels, y[:300]))
    expected.fit(pixels.astype(np.float32), y[:300])
    np.testing.assert_allclose(weights(clf), weights(expected), atol=1e-4)
    assert clf.transform(Rows(pixels)).dtype == np.float32


# -- Arrow -----------------------------------------------------------------------------


def test_columns_are_selected_by_name(blobs):
    X, y = blobs
    frame = table(X, y)
    clf = make().fit(frame, "label")
    assert clf.feature_names_in_.tolist() == [f"f{i}" for i in range(6)]
    other = table(X, y, note=["none"] * len(y))
    other = other.select(["note", "f3", "f1", "f5", "label", "f0", "f2", "f4"])
    np.testing.assert_array_equal(clf.predict_proba(other), clf.predict_proba(frame))
    # A frame of pandas has the same names.
    rows = pd.DataFrame(X, columns=clf.feature_names_in_)
    np.testing.assert_allclose(clf.predict_proba(rows), clf.predict_proba(frame))
    for method in (clf.predict, clf.transform, clf.embed, clf.decision_function):
        with pytest.raises(ValueError, match=r"must have the columns \['f2'\]"):
            method(frame.drop_columns("f2"))


def test_partial_fit_selects_columns_by_name(blobs):
    X, y = blobs
    frame = table(X, y)
    expected = make().fit(frame, "label").partial_fit(frame, "label")
    other = table(X, y, note=["none"] * len(y))
    other = other.select(["note", "f3", "f1", "f5", "label", "f0", "f2", "f4"])
    clf = make().fit(frame, "label").partial_fit(other, "label")
    assert clf.feature_names_in_.tolist() == [f"f{i}" for i in range(6)]
    assert weights(clf).tobytes() == weights(expected).tobytes()


def test_names_of_a_fit_before_are_forgotten(blobs):
    X, y = blobs
    clf = make().fit(table(X, y), "label").fit(Rows(X, y))
    assert not hasattr(clf, "feature_names_in_")
    clf.predict(X)


def test_arrow_types(blobs):
    X, y = blobs
    whole = np.round(X * 10)
    frame = table(whole.astype(np.int32), y)
    np.testing.assert_allclose(
        weights(make().fit(frame, "label")), weights(make().fit(whole, y)), atol=1e-5
    )
    frame = frame.set_column(0, "f0", pa.array(whole[:, 0] > 0))
    clf = make().fit(frame, "label")
    rows = np.column_stack([whole[:, 0] > 0, whole[:, 1:]])
    rows = pd.DataFrame(rows, columns=clf.feature_names_in_)
    np.testing.assert_allclose(clf.embed(frame), clf.embed(rows), atol=1e-4)


def test_an_empty_batch_is_passed_over(blobs):
    frame = table(*blobs)
    parts = pa.concat_tables([frame[:0], frame[:60], frame[:0], frame[60:]])
    np.testing.assert_array_equal(
        weights(make().fit(parts, "label")), weights(make().fit(frame, "label"))
    )


# -- Arrow tables in memory ------------------------------------------------------------


def test_a_table_with_an_array_of_labels_is_in_memory(blobs):
    X, y = blobs
    rows = table(X, y).drop_columns("label")
    frame = pd.DataFrame(X, columns=rows.column_names)
    weight = np.arange(1.0, 121.0)
    for labels in (y, y.tolist(), pa.chunked_array([y]), np.array(list("abc"))[y]):
        clf = make(early_stopping=True).fit(rows, labels, sample_weight=weight)
        expected = make(early_stopping=True).fit(frame, labels, sample_weight=weight)
        assert weights(clf).tobytes() == weights(expected).tobytes()
        assert clf.feature_names_in_.tolist() == rows.column_names
        np.testing.assert_array_equal(clf.predict(rows), expected.predict(frame))
        np.testing.assert_array_equal(clf.transform(rows), expected.transform(frame))
        assert clf.score(rows, labels) == expected.score(frame, labels)
    for fit in (clf, expected):
        fit.set_params(early_stopping=False)
        fit.partial_fit(rows if fit is clf else frame, labels)
    assert weights(clf).tobytes() == weights(expected).tobytes()
    for fit in (clf, expected):
        fit.compress(rows if fit is clf else frame, n_components=2)
    np.testing.assert_array_equal(
        clf.compressor_.components_, expected.compressor_.components_
    )


def test_columns_of_a_table_in_memory_are_selected_by_name(blobs):
    X, y = blobs
    rows = table(X, y).drop_columns("label")
    other = table(X, y, note=["none"] * len(y))
    other = other.select(["note", "f3", "f1", "f5", "label", "f0", "f2", "f4"])
    clf, expected = (make().fit(rows, y) for _ in range(2))
    clf.partial_fit(other, y).compress(other, y)
    expected.partial_fit(rows, y).compress(rows, y)
    assert weights(clf).tobytes() == weights(expected).tobytes()
    with pytest.raises(ValueError, match=r"must have the columns \['f2'\]"):
        clf.partial_fit(rows.drop_columns("f2"), y)


def test_a_table_in_scikit_learns_tools(blobs):
    X, y = blobs
    rows = table(X, y).drop_columns("label")
    expected = cross_val_score(make(), X, y, cv=3)
    np.testing.assert_array_equal(cross_val_score(make(), rows, y, cv=3), expected)
    scaled = make_pipeline(StandardScaler(), make())
    np.testing.assert_array_equal(
        scaled.fit(rows, y).predict(rows), clone(scaled).fit(X, y).predict(X)
    )
    search = StackedGridSearchCV(make(), {"temperature": [1.0, 3.0]}, cv=2)
    by_table = search.fit(rows, y).cv_results_["mean_test_score"]
    by_array = clone(search).fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(by_table, by_array)
    ensemble = SoftRankEnsembleClassifier(make(), n_estimators=2, random_state=0)
    np.testing.assert_array_equal(
        ensemble.fit(rows, y).predict_proba(rows),
        clone(ensemble).fit(X, y).predict_proba(X),
    )


def test_an_index_that_pandas_wrote_into_a_table_is_a_column(blobs):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcdef"))
    rows = pa.Table.from_pandas(frame.set_index("c"))
    clf = make().fit(rows, y)
    assert clf.feature_names_in_.tolist() == ["a", "b", "d", "e", "f", "c"]
    expected = make().fit(frame[clf.feature_names_in_], y)
    assert weights(clf).tobytes() == weights(expected).tobytes()


def test_categories_in_a_table(blobs):
    X, y = blobs
    kind = np.array(["red", "green", "blue"])[y]
    frame = pd.DataFrame({"a": X[:, 0], "kind": pd.Categorical(kind), "b": X[:, 1]})
    small = {"d_model": 8, "n_heads": 2, "depth": 1, "max_epochs": 2}
    rows = pa.Table.from_pandas(frame)
    clf, expected = (
        SoftRankTransformerClassifier(**small, random_state=0).fit(data, y)
        for data in (rows, frame)
    )
    assert clf.is_categorical_.tolist() == [False, True, False]
    assert weights(clf).tobytes() == weights(expected).tobytes()
    for data in (rows, rows.append_column("note", pa.array(kind)), frame):
        np.testing.assert_allclose(
            clf.predict_proba(data), expected.predict_proba(frame), rtol=1e-9
        )
    assert clf.score(rows.append_column("y", pa.array(y)), "y") == clf.score(frame, y)
    pink = rows.set_column(1, "kind", pa.array(["pink"] * len(y)))
    np.testing.assert_array_equal(
        clf.predict(pink), expected.predict(frame.assign(kind="pink"))
    )
    strict = SoftRankTransformerClassifier(**small, handle_unknown="error").fit(rows, y)
    with pytest.raises(ValueError, match="only categories seen in fit, got 'pink'"):
        strict.predict(pink)
    clf = SoftRankTransformerClassifier(**small, categorical_features=None)
    with pytest.raises(ValueError, match="'kind' of type large_string"):
        clf.fit(rows, y)


def test_categories_in_a_table_for_a_perceptron(blobs):
    X, y = blobs
    kind = np.array(["red", "green", "blue"])[y]
    frame = pd.DataFrame({"a": X[:, 0], "kind": kind, "flag": X[:, 1] > 0})
    rows = pa.Table.from_pandas(frame)
    clf, expected = (make().fit(data, y) for data in (rows, frame))
    assert clf.is_categorical_.tolist() == [False, True, True]
    assert weights(clf).tobytes() == weights(expected).tobytes()
    ours, theirs = (
        SoftRankEnsembleClassifier(make(), 2, random_state=0).fit(data, y)
        for data in (rows, frame)
    )
    np.testing.assert_array_equal(ours.predict_proba(rows), theirs.predict_proba(frame))


def arrow_columns(values):
    whole = np.round(values * 10).astype(int).tolist()
    decimals = pa.array([decimal.Decimal(v) / 10 for v in whole], pa.decimal128(9, 1))
    return {
        "decimal": (decimals, np.array(whole) / 10),
        "bool": (pa.array(values > 0), values > 0),
        "int8": (pa.array(whole, pa.int8()), whole),
        "int64": (pa.array(whole, pa.int64()), whole),
        "float16": (pa.array(values.astype(np.float16)), values.astype(np.float16)),
        "dictionary": (pa.array(np.array(whole)).dictionary_encode(), whole),
    }


@pytest.mark.parametrize("name", arrow_columns(np.zeros(1)))
def test_arrow_columns_that_are_numbers(blobs, name):
    X, y = blobs
    column, values = arrow_columns(X[:, 0])[name]
    rows = table(X, y).drop_columns("label").set_column(0, "f0", column)
    X = np.column_stack([np.asarray(values, dtype=float), X[:, 1:]])
    frame = pd.DataFrame(X, columns=rows.column_names)
    plain = {"categorical_features": None}
    expected = make(**plain).fit(frame, y)
    clf = make(**plain).fit(rows, y)
    np.testing.assert_allclose(weights(clf), weights(expected), atol=1e-6)
    np.testing.assert_allclose(clf.embed(rows), clf.embed(frame), rtol=1e-9, atol=1e-9)
    by_name = make().fit(rows.append_column("label", pa.array(y)), "label")
    np.testing.assert_allclose(weights(by_name), weights(expected), atol=1e-5)
    for data, labels in ((rows, y), (rows.append_column("y", pa.array(y)), "y")):
        gaps = column.take(pa.array([None, *range(1, 120)]))
        with pytest.raises(ValueError, match="Input X contains NaN"):
            make(**plain).fit(data.set_column(0, "f0", gaps), labels)


def test_whole_numbers_of_a_stream_keep_their_digits(blobs):
    X, y = blobs
    rows = pa.table({f"f{i}": 2**24 + np.arange(120) * (i + 1) for i in range(6)})
    clf = make().fit(X, y)
    expected = clf.embed(np.column_stack([c.to_numpy() for c in rows.columns]))
    got = clf.embed(rows)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array(["1.5"] * 120), "string"),
        (pa.array(["a"] * 120).dictionary_encode(), "string"),
        (pa.array([0] * 120, pa.date32()), "date32"),
        (pa.array([0] * 120, pa.timestamp("s")), "timestamp"),
        (pa.array([[1.0]] * 120), "list"),
        (pa.nulls(120), "null"),
    ],
    ids=str,
)
def test_arrow_columns_that_are_no_numbers(blobs, column, kind):
    X, y = blobs
    rows = table(X, y).drop_columns("label").append_column("note", column)
    labelled = rows.append_column("label", pa.array(y))
    message = rf"numeric columns, got 'note' of type {kind}.*\. Encode or drop it"
    for features in (None, "from_dtype"):
        clf = make(categorical_features=features)
        ensemble = SoftRankEnsembleClassifier(clf, n_estimators=2)
        for data, labels in ((rows, y), (labelled, "label")):
            if kind == "string" and features and labels is y:
                continue  # In memory it is a column of categories.
            with pytest.raises(ValueError, match=message):
                clf.fit(data, labels)
            with pytest.raises(ValueError, match=message):
                clf.partial_fit(data, labels, classes=[0, 1, 2])
            with pytest.raises(ValueError, match=message):
                ensemble.fit(data, labels)


def test_columns_of_one_name(blobs):
    X, y = blobs
    rows = table(X, y).rename_columns(["a", "b", "a", "c", "d", "e", "label"])
    for data, labels in ((rows.drop_columns("label"), y), (rows, "label")):
        with pytest.raises(ValueError, match=r"several are named \['a'\]"):
            make().fit(data, labels)


# -- partial_fit -----------------------------------------------------------------------


def test_partial_fit_takes_chunks_and_streams_by_turns(blobs):
    X, y = blobs
    clf, expected = make(learning_rate=0.01), make(learning_rate=0.01)
    clf.partial_fit(Rows(X, y), classes=[0, 1, 2, 3])
    expected.partial_fit(X, y, classes=[0, 1, 2, 3])
    for _ in range(5):
        clf.partial_fit(X, y).partial_fit(Rows(X, y))
        expected.partial_fit(X, y).partial_fit(X, y)
    np.testing.assert_allclose(weights(clf), weights(expected), atol=1e-4)
    assert clf.n_iter_ == 11
    assert clf.score(X, y) > 0.8
    with pytest.raises(ValueError, match=r"only the classes \[0, 1, 2, 3\], got \[7\]"):
        clf.partial_fit(Rows(X, y + 7 * (y == 0)))
    with pytest.raises(ValueError, match="rows of 6 numbers, got 5"):
        clf.partial_fit(Rows(X[:, :5], y))


def test_partial_fit_that_fails_midway_changes_nothing(blobs):
    X, y = blobs
    pairs = list(zip(X, y, strict=True))
    # Checked whole, and half of it to train on.
    short = Passes(lambda i: pairs if i == 0 else pairs[:50])
    clf = make(dropout=0.5, normalization="batch")
    clf.partial_fit(Rows(X, y), classes=[0, 1, 2])
    before, names = clf.predict_proba(X), set(vars(clf))
    history = list(clf.history_)
    with pytest.raises(ValueError, match="got 50 rows where a pass before gave 120"):
        clf.partial_fit(short)
    # Not in training mode, above all.
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert clf.history_ == history
    assert set(vars(clf)) == names
    clf.partial_fit(Rows(X, y))
    assert clf.n_iter_ == 2
    # Data that is refused before any training costs nothing: the optimizer goes on.
    net = clf.net_
    with pytest.raises(ValueError, match="NaN"):
        clf.partial_fit(Rows(np.where(X > 2, np.nan, X), y))
    assert clf.partial_fit(Rows(X, y)).net_ is net


# -- What can't be trained on ----------------------------------------------------------


def rows_of(X, y, replaced):
    pairs = list(zip(X, y, strict=True))
    for place, pair in replaced.items():
        pairs[place] = pair
    return Passes(lambda i: pairs)


def last(X, label):
    return {i: (X[i], label) for i in range(100, 120)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (Rows(X[:0], y[:0]), None), "X must yield at least one row"),
        (lambda X, y: (table(X[:0], y[:0]), "label"), "X must yield at least one row"),
        (lambda X, y: (Rows(X, 0 * y), None), "at least two classes, got one class, 0"),
        (lambda X, y: (Rows(X), None), "X must yield pairs"),
        (lambda X, y: (Items(X), None), "X must yield pairs"),
        (lambda X, y: (Rows(X, y), y), "y must be None where X is a Dataset"),
        (lambda X, y: (Rows(X, y + 0.5), None), "Unknown label type"),
        (
            lambda X, y: (rows_of(X, y, replaced={110: (X[0] * np.nan, 0)}), None),
            "Input X contains NaN",
        ),
        (
            lambda X, y: (rows_of(X, y, replaced={110: (X[0], None)}), None),
            "label with each row|missing ones",
        ),
        (
            lambda X, y: (rows_of(X, y, replaced={110: (X[0], np.nan)}), None),
            "label for each row, got .* missing",
        ),
        (
            lambda X, y: (
                rows_of(X, y, replaced={i: (X[i], "b") for i in range(100, 120)}),
                None,
            ),
            "labels of one type, got",
        ),
        (
            lambda X, y: (rows_of(X, y, replaced={3: (X[0, :5], 0)}), None),
            "rows of one shape",
        ),
        (
            lambda X, y: (
                rows_of(X, y, replaced={i: (X[i, :5], 0) for i in range(100, 120)}),
                None,
            ),
            "rows of one shape",
        ),
        (
            lambda X, y: (rows_of(X, y, replaced={3: (X[0], 0, 1.0)}), None),
            r"pairs \(row, label\), got a sequence of 3",
        ),
        (lambda X, y: (Rows(X, np.eye(3)[y]), None), "one label with each row"),
        (
            lambda X, y: (Rows(np.full((120, 2), "word"), y), None),
            "could not convert string to float",
        ),
        (lambda X, y: (table(X, y), None), "y must be the name of the labels' column"),
        (
            lambda X, y: (pyarrow.dataset.dataset(table(X, y)), y),
            "y must be the name .* got ndarray.* Table in memory",
        ),
        (lambda X, y: (table(X, y), "kind"), r"must have the columns \['kind'\]"),
        (
            lambda X, y: (table(X, y).select(["label"]), "label"),
            "must have a column beside the labels",
        ),
        (
            lambda X, y: (table(X, y, note=["none"] * 120), "label"),
            "numeric columns, got 'note' of type string",
        ),
        (
            lambda X, y: (table(X, pa.array(["a", None] * 60)), "label"),
            "label for each row, got .* missing",
        ),
        (
            lambda X, y: (table(X, y, gap=pa.array([None, *range(119)])), "label"),
            "Input X contains NaN",
        ),
    ],
)
def test_bad_streams_are_refused_before_training(blobs, monkeypatch, change, message):
    monkeypatch.setattr(_sources, "CHUNK_ROWS", 20)
    X, y = blobs
    clf = make().fit(X, y)
    before = dict(vars(clf))

    def fail(*args, **kwargs):
        raise AssertionError("Training has begun.")

    monkeypatch.setattr("sksoftrank.training._grouping.train", fail)
    for method in (clf.fit, clf.partial_fit):
        if method == clf.partial_fit and "two classes" in message:
            continue  # Allowed there.
        with pytest.raises(ValueError, match=message):
            method(*change(X, y))
        assert vars(clf) == before


@pytest.mark.parametrize(
    ("params", "arguments", "message"),
    [
        ({"early_stopping": True}, {}, "early_stopping must be False where X is a"),
        ({}, {"sample_weight": np.ones(120)}, "sample_weight must be None where X is"),
    ],
)
def test_what_streams_do_not_offer(blobs, params, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**params).fit(Rows(*blobs), **arguments)


class OneShot(IterableDataset):
    """A generator that is used up, passed off as a Dataset."""

    def __init__(self, pairs):
        self.pairs = iter(pairs)

    def __iter__(self):
        return self.pairs


@pytest.mark.parametrize("n_full", [1, 3, 5])
def test_a_stream_that_ends_early_later(blobs, n_full):
    X, y = blobs
    pairs = list(zip(X, y, strict=True))
    # The check, four epochs, and the basis.
    short = Passes(lambda i: pairs if i < n_full else pairs[:90])
    clf = make().fit(X, y)
    before = dict(vars(clf)), weights(clf).tobytes()
    with pytest.raises(ValueError, match="got 90 rows where a pass before gave 120"):
        clf.fit(short)
    assert (vars(clf), weights(clf).tobytes()) == before
    assert short.n_passes == n_full + 1
    unfitted = make()
    names = set(vars(unfitted))
    with pytest.raises(ValueError, match="as a generator that is used up can't"):
        unfitted.fit(OneShot(pairs))
    assert set(vars(unfitted)) == names


# -- Inference -------------------------------------------------------------------------


METHODS = [
    "predict",
    "predict_proba",
    "predict_log_proba",
    "decision_function",
    "embed",
    "transform",
]


@pytest.mark.parametrize("kind", ["iterable", "map", "tensors", "table", "parquet"])
def test_streams_give_what_arrays_give(blobs, tmp_path, kind):
    X, y = blobs
    clf = make().fit(table(X, y), "label")
    stream, _ = sources(X, y, tmp_path)[kind]
    clf._inference_rows = 50
    rows = pd.DataFrame(X, columns=clf.feature_names_in_)
    for name in METHODS:
        method, expected = getattr(clf, name), getattr(clf, name)(rows)
        got = method(stream)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    layer = next(
        n for n, m in clf.module_.named_modules() if isinstance(m, torch.nn.ReLU)
    )
    np.testing.assert_allclose(
        clf.embed(stream, layer=layer), clf.embed(rows, layer=layer)
    )


def test_rows_alone(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    expected = clf.predict(X)
    alone = [Rows(X), Items(X), TensorDataset(torch.tensor(X)), Rows(torch.tensor(X))]
    for stream in alone:
        np.testing.assert_array_equal(clf.predict(stream), expected)
        assert clf.score(stream, y) == clf.score(X, y)
        with pytest.raises(ValueError, match="X must yield pairs"):
            clf.score(stream)
    single = clf.predict_proba(Rows(X.astype(np.float32)))
    assert single.dtype == np.float32


def test_bad_rows_at_prediction(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    hurt = X.copy()
    hurt[-1, 0] = np.inf
    for name in METHODS:
        with pytest.raises(ValueError, match="Input X contains infinity"):
            getattr(clf, name)(Rows(hurt))
        with pytest.raises(ValueError, match="at least one row"):
            getattr(clf, name)(Rows(X[:0]))
        with pytest.raises(ValueError, match="rows of 6 numbers, got 4"):
            getattr(clf, name)(Rows(X[:, :4]))
    with pytest.raises(ValueError, match="at least one row"):
        clf.score(Rows(X[:0]))
    with pytest.raises(ValueError, match="X must be an array, got Rows"):
        clf.compress(Rows(X, y))


def test_score_follows_weights_and_arrays(blobs):
    X, y = blobs
    clf = make(max_epochs=1).fit(X, y)
    weight = np.arange(1.0, 121.0)
    expected = clf.score(X, y, weight)
    assert clf.score(Rows(X, y), sample_weight=weight) == pytest.approx(expected)
    assert clf.score(table(X, y), "label") == clf.score(X, y)
    with pytest.raises(ValueError, match="y"):
        clf.score(X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_transform_writes_where_it_is_told(blobs, tmp_path, dtype):
    X, y = blobs
    X = X.astype(dtype)
    clf = make(n_components=3).fit(X, y)
    clf._inference_rows = 50
    expected = clf.transform(X)
    path = tmp_path / "out.npy"
    out = np.lib.format.open_memmap(path, "w+", dtype, (120, 3))
    for rows in (X, Rows(X), Items(X), table(X, y).drop_columns("label")):
        out[:] = 0
        assert clf.transform(rows, out=out) is out
        out.flush()
        np.testing.assert_allclose(np.load(path), expected, rtol=1e-6, atol=1e-6)
    longer = np.zeros((200, 3))
    got = clf.transform(Rows(X), out=longer)
    assert got.shape == (120, 3)
    assert np.shares_memory(got, longer)
    assert not longer[120:].any()
    backwards = np.zeros((120, 3))[::-1]
    np.testing.assert_allclose(clf.transform(X, out=backwards), expected, rtol=1e-6)


def read_only(shape):
    out = np.zeros(shape)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((119, 3)),
        np.zeros((121, 3)),
        np.zeros((120, 2)),
        np.zeros(120),
        np.zeros((120, 3), np.int64),
        np.zeros((120, 3), np.complex128),
        read_only((120, 3)),
        [[0.0] * 3] * 120,
        pd.DataFrame(np.zeros((120, 3))),
    ],
    ids=lambda out: f"{type(out).__name__}{getattr(out, 'shape', '')}",
)
def test_bad_out_is_refused_before_any_work(blobs, monkeypatch, out):
    X, y = blobs
    clf = make(n_components=3).fit(X, y)

    def fail(*args):
        raise AssertionError("Rows are being transformed.")

    monkeypatch.setattr(clf, "_infer_chunks", fail)
    streams = [X, Items(X), table(X, y).drop_columns("label")]
    if np.shape(out) not in [(119, 3), (121, 3)]:  # Its length is not known.
        streams.append(Rows(X))
    for rows in streams:
        with pytest.raises(ValueError, match=r"out must be .* of shape \(\d+, 3\)"):
            clf.transform(rows, out=out)


def test_a_stream_longer_than_out(blobs):
    X, y = blobs
    clf = make(n_components=3).fit(X, y)
    with pytest.raises(ValueError, match=r"out must be .*\(120, 3\) or longer"):
        clf.transform(Rows(X), out=np.zeros((119, 3)))
    with pytest.raises(ValueError, match="at least one row"):
        clf.transform(Rows(X[:0]), out=np.zeros((119, 3)))


def test_out_is_no_metadata(blobs):
    import sklearn

    with sklearn.config_context(enable_metadata_routing=True):
        clf = make()
        assert "out" not in str(clf.get_metadata_routing())
        assert not hasattr(clf, "set_transform_request")
        clf.set_score_request(sample_weight=True)


def test_iter_transform(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    clf._inference_rows = 50
    for rows in (X, Rows(X), table(X, y).drop_columns("label")):
        parts = list(clf.iter_transform(rows))
        assert max(map(len, parts)) <= 50
        np.testing.assert_allclose(np.concatenate(parts), clf.transform(X), rtol=1e-6)
    with pytest.raises(ValueError, match="6 features"):
        clf.iter_transform(X[:, :4])  # At once, not with the first chunk.


def test_a_fitted_stream_estimator_pickles(blobs):
    X, y = blobs
    clf = make().fit(Rows(X, y))
    copied = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copied.predict_proba(X), clf.predict_proba(X))
    copied.partial_fit(Rows(X, y))


# -- Memory ----------------------------------------------------------------------------


class Row(np.ndarray):
    """A row that can be told alive."""


class Alive(IterableDataset):
    """Rows of 8 KB, and the most that were ever alive at once."""

    def __init__(self, n):
        self.n, self.alive, self.most = n, weakref.WeakSet(), 0

    def __iter__(self):
        rng = np.random.default_rng(0)
        for i in range(self.n):
            row = rng.normal(size=1024).view(Row)
            row[0] += 9 * (i % 2)
            marker = Marker()
            row.marker = marker
            self.alive.add(marker)
            self.most = max(self.most, len(self.alive))
            yield row, i % 2


class Marker:
    pass


def test_rows_of_a_stream_are_not_kept(monkeypatch):
    monkeypatch.setattr(_sources, "CHUNK_ROWS", 32)
    monkeypatch.setattr("sksoftrank.estimators._training_data.BASIS_ROWS", 64)
    stream = Alive(1500)
    clf = make(hidden_layer_sizes=(4,), batch_size=4, max_epochs=2)
    clone(clf).fit(Alive(64))  # What a first fit imports is not the rows'.
    gc.collect()
    tracemalloc.start()
    try:
        clf.fit(stream)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        list(clf.iter_transform(stream))
        start, peak_transform = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    gc.collect()
    assert stream.most <= 2 * 32 + 2
    # All rows would take 12 MB; the buffer of 128 takes 0.5.
    assert peak < 5e6
    assert peak_transform - start < 3e6


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
@pytest.mark.parametrize("callbacks", [None, [Callback()]])  # In a stack, and skorch's.
def test_memory_maps_are_used_where_they_lie(tmp_path, dtype, callbacks):
    rng = np.random.default_rng(0)
    n_rows, n_columns = 12000, 12288 // np.dtype(dtype).itemsize // 4
    path = tmp_path / "rows.npy"
    X = np.lib.format.open_memmap(path, "w+", dtype, (n_rows, n_columns))
    y = rng.integers(2, size=n_rows)
    for part in gen_batches(n_rows, 500):
        X[part] = rng.integers(5, size=(500, n_columns))
        X[part, :8] += (5 * y[part, None]).astype(dtype)
    X.flush()
    X = np.load(path, mmap_mode="r")  # 37 MB.
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (n_rows, 2))
    clf = make(
        hidden_layer_sizes=(8,),
        batch_size=64,
        max_epochs=1,
        n_components=2,
        callbacks=callbacks,
    )
    # For the basis; those of a fit are 4,096 rows in single precision.
    basis = pytest.MonkeyPatch()
    basis.setattr("sksoftrank.estimators._mlp.INFERENCE_ROWS", 256)
    basis.setattr("sksoftrank.estimators._training_data.BASIS_ROWS", 500)
    tracemalloc.start()
    try:
        clf.fit(X, y)
        clf.transform(X, out=out)
        list(clf.iter_transform(X))
        clf.predict(X)
        clf.partial_fit(X[:3000], y[:3000])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        basis.undo()
    assert peak < 14e6  # A block of batches, in double and in single precision.
    fits = [clone(clf).fit(rows, y[:500]) for rows in (X[:500], X[:500].astype(float))]
    np.testing.assert_array_equal(weights(fits[0]), weights(fits[1]))


def test_wide_rows_come_in_shorter_chunks(monkeypatch):
    monkeypatch.setattr(_sources, "CHUNK_BYTES", 1000)
    chunks = _sources.open_stream(Rows(np.zeros((10, 50)), np.arange(10)))()
    assert [len(rows) for rows, _ in chunks] == [2] * 5


def test_arrow_is_read_in_chunks(blobs, tmp_path):
    X = np.zeros((5000, 2))
    frame = table(X, np.arange(5000) % 2)
    pa.parquet.write_table(frame, tmp_path / "rows.parquet")
    for source in (frame, pyarrow.dataset.dataset(tmp_path)):
        sizes = [len(rows) for rows, _ in _sources.open_stream(source, "label")()]
        assert sum(sizes) == 5000
        assert max(sizes) <= _sources.CHUNK_ROWS


# -- In skorch -------------------------------------------------------------------------


def test_a_net_trains_on_a_stream(blobs):
    X, y = blobs
    dataset = StreamDataset(lambda: iter([(X[:70], y[:70]), (X[70:], y[70:])]), 120)
    params = {
        "module__n_features": 6,
        "module__n_classes": 3,
        "module__random_state": 0,
        "iterator_train__random_state": 0,
        "train_split": None,
        "verbose": 0,
        "max_epochs": 3,
    }
    net = SoftRankNet(MLP, **params).fit(dataset, None)
    expected = SoftRankNet(MLP, **params).fit(X, y)
    assert net.history[:, "train_loss"] == pytest.approx(
        expected.history[:, "train_loss"]
    )
