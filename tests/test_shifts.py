"""The shifts: scikit-learn's contract, severity, seeds, and what each one does."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksoftrank import shifts

SHIFTS = [
    shifts.GaussianNoise,
    shifts.FeatureDropout,
    shifts.GainDrift,
    shifts.OffsetDrift,
]


def make(kind, severity=3, random_state=0):
    return kind(severity, random_state=random_state)


def table(n=40, seed=0, size=64):
    return np.random.default_rng(seed).random((n, size))


every_shift = pytest.mark.parametrize("kind", SHIFTS)


def expected_failures(shift):
    """Return the checks that noise fails: with a seed it is the same each time.

    But each value has noise of its own, the next that the generator draws: a row that
    stands elsewhere, or among fewer rows, gets another's. The shifts of whole columns
    pass these checks too.
    """
    if not isinstance(shift, shifts.GaussianNoise):
        return {}
    reason = "a row's noise depends on its place among the rows"
    return {
        "check_methods_sample_order_invariance": reason,
        "check_methods_subset_invariance": reason,
    }


@parametrize_with_checks(
    [kind() for kind in SHIFTS], expected_failed_checks=expected_failures
)
def test_scikit_learn(estimator, check):
    check(estimator)


def test_every_public_shift_is_tested():
    assert {kind.__name__ for kind in SHIFTS} == set(shifts.__all__)


# Severity


@every_shift
def test_change_grows_with_severity(kind):
    X = table()
    change = [
        np.abs(make(kind, severity).fit_transform(X) - X).mean()
        for severity in (1, 2, 3, 4, 5)
    ]
    assert change[0] > 0
    assert (np.diff(change) > 0).all()


@every_shift
@pytest.mark.parametrize("severity", [0, 6, 2.5, "3", None])
def test_invalid_severity(kind, severity):
    with pytest.raises(ValueError, match=f"'severity' parameter of {kind.__name__}"):
        make(kind, severity).fit(table())


# Same data, same seed


@every_shift
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_input_stays_and_dtype_is_kept(kind, dtype):
    X = table().astype(dtype)
    copy = X.copy()
    out = make(kind).fit(X).transform(X)
    np.testing.assert_array_equal(X, copy)
    assert not np.shares_memory(out, X)
    assert out.dtype == dtype
    double = make(kind).fit(X.astype(np.float64)).transform(X.astype(np.float64))
    np.testing.assert_allclose(out, double, atol=1e-5)


@every_shift
def test_integers_become_double(kind):
    X = (table() * 100).astype(np.int64)
    assert make(kind).fit_transform(X).dtype == np.float64


@every_shift
def test_same_output_each_time(kind):
    X = table()
    shift = make(kind).fit(X)
    np.testing.assert_array_equal(shift.transform(X), shift.transform(X))
    again = clone(shift).fit(X).transform(X)
    np.testing.assert_array_equal(again, shift.transform(X))


@every_shift
def test_seeds_differ_and_a_generator_moves_on(kind):
    X = table()
    first, second = (make(kind, random_state=s).fit_transform(X) for s in (0, 1))
    assert not np.array_equal(first, second)
    shift = make(kind, random_state=np.random.RandomState(0)).fit(X)
    np.testing.assert_array_equal(shift.transform(X), first)
    assert not np.array_equal(shift.transform(X), first)


@every_shift
def test_global_generator_is_untouched(kind):
    X = table()
    before = np.random.get_state()  # noqa: NPY002
    make(kind).fit_transform(X)
    make(kind, random_state=None).fit_transform(X)
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


@every_shift
def test_without_a_seed_each_transform_differs(kind):
    X = table()
    shift = make(kind, random_state=None).fit(X)
    assert not np.array_equal(shift.transform(X), shift.transform(X))


@every_shift
def test_scale_comes_from_fit(kind):
    """A single row, or rows of another scale, are shifted as the training rows say."""
    X = table()
    shift = make(kind).fit(X)
    whole = shift.transform(X)
    np.testing.assert_allclose(shift.transform(X[:1]), whole[:1])


# Tables


def test_noise_is_in_units_of_each_column():
    X = table(20_000, size=2) * [1.0, 100.0] + [0.0, 7.0]
    for severity, level in enumerate((0.1, 0.25, 0.5, 0.75, 1.0), start=1):
        noise = make(shifts.GaussianNoise, severity).fit_transform(X) - X
        # Relative standard error of a deviation from 20,000 values: 0.5 %.
        np.testing.assert_allclose(noise.std(0) / X.std(0), level, rtol=0.03)
        np.testing.assert_allclose(noise.mean(0) / X.std(0), 0.0, atol=0.04)


def test_dropout_puts_the_training_mean_in_whole_columns():
    X, new = table(), table(5, seed=1)
    for severity, dropped in enumerate((3, 6, 13, 22, 32), start=1):
        out = make(shifts.FeatureDropout, severity).fit(X).transform(new)
        changed = (out != new).any(axis=0)
        assert changed.sum() == dropped
        np.testing.assert_allclose(
            out[:, changed], np.tile(X.mean(0)[changed], (5, 1)), rtol=1e-12
        )
        np.testing.assert_array_equal(out[:, ~changed], new[:, ~changed])
    one = make(shifts.FeatureDropout, 1).fit_transform(X[:, :1])
    np.testing.assert_allclose(one, X[:, :1].mean(), rtol=1e-12)


def test_gain_is_one_factor_a_column():
    X = table(10, size=2_000) + 0.1
    for severity, level in enumerate((0.05, 0.1, 0.2, 0.35, 0.5), start=1):
        gain = make(shifts.GainDrift, severity).fit_transform(X) / X
        np.testing.assert_allclose(gain, np.tile(gain[0], (10, 1)))
        # Relative standard error of a deviation from 2,000 values: 1.6 %.
        assert np.log(gain[0]).std() == pytest.approx(level, rel=0.08)


def test_offset_is_one_number_a_column():
    X = table(10, size=2_000)
    for severity, level in enumerate((0.1, 0.25, 0.5, 0.75, 1.0), start=1):
        offset = make(shifts.OffsetDrift, severity).fit_transform(X) - X
        np.testing.assert_allclose(offset, np.tile(offset[0], (10, 1)), atol=1e-12)
        assert (offset[0] / X.std(0)).std() == pytest.approx(level, rel=0.08)


@pytest.mark.parametrize("kind", [shifts.GaussianNoise, shifts.OffsetDrift])
def test_a_constant_column_stays(kind):
    X = np.column_stack([np.full(30, 0.5), np.arange(30.0)])
    out = make(kind).fit_transform(X)
    np.testing.assert_array_equal(out[:, 0], 0.5)
    assert (out[:, 1] != X[:, 1]).all()


# Frames


def mixed(n=40):
    """Return a frame of numbers of several dtypes among what is no number."""
    X = table(n, size=4)
    return pd.DataFrame(
        {
            "text": np.resize(["a", "b", None], n),
            "double": X[:, 0],
            "flag": X[:, 1] > 0.5,
            "single": X[:, 1].astype(np.float32),
            "kind": pd.Categorical(np.resize(["u", "v", "w"], n)),
            "whole": np.arange(n),
            "when": pd.date_range("2020-01-01", periods=n),
        },
        index=np.arange(n)[::-1] + 7,
    )


NUMBERS = ["double", "single", "whole"]
pandas_or_polars = pytest.mark.parametrize(
    "form", [pd.DataFrame, pl.from_pandas], ids=["pandas", "polars"]
)


@every_shift
@pandas_or_polars
def test_of_a_frame_the_numbers_are_shifted(kind, form):
    X, new = form(mixed()), form(mixed(9))
    shift = make(kind)
    out = shift.fit(X).transform(new)
    assert type(out) is type(new)
    assert list(out.columns) == list(X.columns) == shift.feature_names_in_.tolist()
    assert shift.n_features_in_ == 7
    others = ["text", "flag", "kind", "when"]
    if form is pd.DataFrame:
        pd.testing.assert_frame_equal(out[others], new[others])
        assert [str(out[name].dtype) for name in NUMBERS] == [
            "float64", "float32", "float64",
        ]  # fmt: skip
        pd.testing.assert_frame_equal(new, mixed(9))  # A copy.
    else:
        assert out[others].equals(new[others])
        assert out[NUMBERS].dtypes == [pl.Float64, pl.Float32, pl.Float64]
    # The same as of the numbers alone, whatever else there is.
    numbers = X[NUMBERS].to_numpy().astype(np.float64)
    expected = (
        clone(shift).fit(numbers).transform(new[NUMBERS].to_numpy().astype(float))
    )
    np.testing.assert_allclose(out[NUMBERS].to_numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(shift.scale_, numbers.std(axis=0), rtol=1e-6)


@pandas_or_polars
def test_a_frame_of_numbers_stays_a_frame(form):
    X = form(pd.DataFrame(table(9, size=3), columns=list("abc")))
    shift = make(shifts.GainDrift).fit(X)
    out = shift.transform(X)
    assert type(out) is type(X)
    assert list(out.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(
        out, make(shifts.GainDrift).fit_transform(np.array(X))
    )
    # Of columns that have numbers for names, too.
    numbered = pd.DataFrame(np.array(X))
    for rows in (numbered, numbered.assign(text="a").set_axis(range(4), axis=1)):
        out = make(shifts.GainDrift).fit_transform(rows)
        assert out.columns.tolist() == rows.columns.tolist()
        np.testing.assert_array_equal(out[[0, 1, 2]], shift.fit(X).transform(X))


def test_the_columns_of_fit_are_shifted():
    X = mixed()
    shift = make(shifts.OffsetDrift).fit(X)
    # Numbers where fit saw a category are one.
    out = shift.transform(X.assign(text=1.0))
    assert (out["text"] == 1.0).all()
    with pytest.raises(ValueError, match="could not convert string"):
        shift.transform(X.assign(double="much"))
    with pytest.raises(ValueError, match="feature names"):
        shift.transform(X[X.columns[::-1]])
    with pytest.raises(
        ValueError, match=r"X must be a frame with the columns \['double'"
    ):
        shift.transform(X.to_numpy())
    with pytest.raises(ValueError, match="NaN"):
        shift.transform(X.assign(double=np.nan))


@every_shift
@pandas_or_polars
def test_a_frame_without_numbers(kind, form):
    X = form(mixed()[["text", "flag", "kind"]])
    with pytest.raises(
        ValueError, match="X must have a column of numbers to shift, got"
    ):
        make(kind).fit(X)
