"""The corruptions: what each one does, seeds, shapes, and scikit-learn's contract."""

import colorsys
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpydoc.docscrape import get_doc_object
from PIL import Image
from scipy import ndimage
from scipy.special import expit
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksoftrank import corruptions
from sksoftrank.corruptions import CORRUPTIONS, Corruption

every_kind = pytest.mark.parametrize("kind", CORRUPTIONS)
# Kinds that draw nothing.
FIXED = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
}
# Strengths of the kinds with a closed form, as published.
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS = (500, 250, 100, 75, 50)
IMPULSES = (0.01, 0.02, 0.03, 0.05, 0.07)
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
PIXELS = (30, 28, 27, 24, 20)
ZOOMS = [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)]
FOGS = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))


def images(n=6, shape=(3, 32, 32), seed=0):
    """Return smooth images, as photographs are, in [0, 1] and in steps of 1 / 255."""
    noise = np.random.default_rng(seed).standard_normal((n, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2), mode="wrap")
    return np.rint(255 * expit(6 * smooth)) / 255


def corrupt(kind, X, severity=3, random_state=0, **kwargs):
    shift = Corruption(kind, severity, random_state=random_state, **kwargs)
    return shift.fit_transform(X)


def draws(kind, image, random_state=0):
    """Return the generator that an image's noise comes from."""
    salt = np.random.RandomState(random_state).randint(2**31)
    (rng,) = corruptions._generators(image.reshape(1, -1), f"{kind} {salt}".encode())
    return rng


# scikit-learn


class Squashed(Corruption):
    """Takes the values of any size that scikit-learn's checks feed, as one line."""

    def _check_range(self, rows):
        return expit(rows)

    def _image_shape(self, seen):
        return (1, 1, self.n_features_in_)


@parametrize_with_checks([Squashed(kind) for kind in CORRUPTIONS])
def test_scikit_learn(estimator, check):
    check(estimator)


def test_fitted_attributes_are_the_documented_ones():
    fitted = Corruption().fit(images().reshape(6, -1))
    documented = {a.name for a in get_doc_object(Corruption)["Attributes"]}
    assert {a for a in vars(fitted) if a.endswith("_")} == documented - {
        "feature_names_in_"
    }


def test_the_kinds_are_the_documented_fifteen():
    assert len(set(CORRUPTIONS)) == 15
    for kind in CORRUPTIONS:
        assert f'``"{kind}"``' in Corruption.__doc__


def test_in_a_pipeline():
    X = images().reshape(6, -1)
    pipeline = make_pipeline(Corruption("fog", random_state=0), StandardScaler())
    assert pipeline.fit_transform(X).shape == X.shape
    pipeline.set_params(corruption__kind="snow", corruption__severity=5)
    assert np.isfinite(pipeline.fit_transform(X)).all()


# Shape, dtype, range


@every_kind
@pytest.mark.parametrize("severity", [1, 5])
def test_shape_dtype_and_range_are_kept(kind, severity):
    # The same numbers in both precisions: a rounding can change a count of photons.
    X = images().astype(np.float32).astype(np.float64)
    copy = X.copy()
    double = corrupt(kind, X, severity)
    np.testing.assert_array_equal(X, copy)
    assert double.shape == X.shape
    assert double.dtype == np.float64
    assert not np.shares_memory(double, X)
    assert double.min() >= 0
    assert double.max() <= 1
    assert not np.array_equal(double, X)
    single = corrupt(kind, X.astype(np.float32), severity)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=1e-5)


@every_kind
def test_rows_and_images_are_the_same(kind):
    X = images()
    expected = corrupt(kind, X).reshape(6, -1)
    rows = X.reshape(6, -1)
    for shape in (None, (3, 32, 32), [3, 32, 32], np.array([3, 32, 32])):
        out = corrupt(kind, rows, image_shape=shape)
        np.testing.assert_array_equal(out, expected)
    shift = Corruption(kind, random_state=0).fit(X)
    np.testing.assert_array_equal(shift.transform(rows), expected)
    np.testing.assert_array_equal(
        corrupt(kind, X, image_shape=(3, 32, 32)).reshape(6, -1), expected
    )


def test_shape_of_rows():
    assert Corruption().fit(np.zeros((2, 64))).image_shape_ == (1, 8, 8)
    assert Corruption().fit(np.zeros((2, 48))).image_shape_ == (3, 4, 4)
    shift = Corruption(image_shape=(4, 16)).fit(np.zeros((2, 64)))
    assert shift.image_shape_ == (1, 4, 16)
    assert Corruption().fit(np.zeros((2, 2, 4, 8))).image_shape_ == (2, 4, 8)
    assert Corruption().fit(np.zeros((2, 2, 4, 8)).tolist()).n_features_in_ == 64


@every_kind
@settings(max_examples=8)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 4),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    severity=st.integers(1, 5),
)
def test_any_shape(kind, n, c, h, w, severity):
    X = np.random.default_rng(0).random((n, c, h, w))
    out = corrupt(kind, X, severity)
    assert out.shape == X.shape
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1


@every_kind
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images(kind, value):
    X = np.full((1, 3, 32, 32), value)
    for severity in (1, 5):
        out = corrupt(kind, X, severity)
        assert np.isfinite(out).all()
        if kind in {*FIXED, "glass_blur", "motion_blur", "elastic_transform"} - {
            "brightness"
        }:
            # JPEG rounds to 8 bits.
            atol = 1 / 255 if kind == "jpeg_compression" else 1e-12
            np.testing.assert_allclose(out, X, atol=atol)


# Severity and seeds


@every_kind
def test_distance_grows_with_severity(kind):
    X = images(60)
    distance = [
        np.abs(corrupt(kind, X, severity) - X).mean() for severity in (1, 2, 3, 4, 5)
    ]
    steps = np.diff(distance)
    assert distance[0] > 0
    if kind == "elastic_transform":  # The warp of the whole shrinks.
        assert (steps < 0).all()
    elif kind == "glass_blur":  # 1 to 3 move pixels once, 4 and 5 twice.
        assert min(distance[3:]) > max(distance[:3])
    elif kind == "motion_blur":  # Equal deviations: taps 13 to 17 weigh 1e-10.
        assert steps[2] == pytest.approx(0, abs=1e-5)
        assert (np.delete(steps, 2) > 0).all()
    elif kind == "frost":  # 4 and 5 dim the image, and the ice makes up for it.
        assert (steps[:2] > 0).all()
        assert min(distance) == distance[0]
    else:
        assert (steps > 0).all()


@every_kind
def test_same_output_each_time(kind):
    X = images()
    shift = Corruption(kind, random_state=0).fit(X)
    expected = shift.transform(X)
    np.testing.assert_array_equal(shift.transform(X), expected)
    np.testing.assert_array_equal(clone(shift).fit(X).transform(X), expected)


@every_kind
def test_an_image_is_the_same_whatever_comes_with_it(kind, monkeypatch):
    X = images()
    whole = corrupt(kind, X)
    np.testing.assert_array_equal(corrupt(kind, X[::-1]), whole[::-1])
    np.testing.assert_array_equal(corrupt(kind, X[3:4]), whole[3:4])
    monkeypatch.setattr(corruptions, "_CHUNK", 2 * X[0].size)
    np.testing.assert_array_equal(corrupt(kind, X), whole)


@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - FIXED))
def test_seeds_differ_and_a_generator_moves_on(kind):
    X = images()
    first, second = (corrupt(kind, X, random_state=s) for s in (0, 1))
    assert not np.array_equal(first, second)
    shift = Corruption(kind, random_state=np.random.RandomState(0)).fit(X)
    np.testing.assert_array_equal(shift.transform(X), first)
    assert not np.array_equal(shift.transform(X), first)
    fresh = Corruption(kind).fit(X)
    assert not np.array_equal(fresh.transform(X), fresh.transform(X))


@pytest.mark.parametrize("kind", sorted(FIXED))
def test_kinds_without_noise_need_no_seed(kind):
    X = images()
    np.testing.assert_array_equal(
        corrupt(kind, X, random_state=None), corrupt(kind, X, random_state=1)
    )


@every_kind
def test_global_generator_is_untouched(kind):
    before = np.random.get_state()  # noqa: NPY002
    corrupt(kind, images(1), random_state=None)
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_images_and_kinds_have_noise_of_their_own():
    X = np.full((2, 1, 32, 32), 0.5)
    X[1, 0, 0, 0] = 0.6
    noise = corrupt("gaussian_noise", X) - X
    assert abs(np.corrcoef(noise.reshape(2, -1))[0, 1]) < 0.15
    a, b = (draws(kind, X[0]).random() for kind in ("gaussian_noise", "shot_noise"))
    assert a != b


# Noise


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_noise_has_the_published_deviation(severity):
    X = np.full((1, 3, 128, 128), 0.5)
    noise = corrupt("gaussian_noise", X, severity) - X
    # Relative standard error of a deviation from 49,152 values: 0.3 %.
    assert noise.std() == pytest.approx(NOISE[severity - 1], rel=0.015)
    assert noise.mean() == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_shot_noise_counts_photons(severity):
    X = np.full((1, 3, 128, 128), 0.3)
    out = corrupt("shot_noise", X, severity)
    photons = PHOTONS[severity - 1]
    counts = photons * out
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert out.var() == pytest.approx(0.3 / photons, rel=0.03)
    assert out.mean() == pytest.approx(0.3, abs=0.003)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_impulses_are_black_or_white_as_often(severity):
    X = np.full((1, 3, 128, 128), 0.5)
    out = corrupt("impulse_noise", X, severity)
    share = IMPULSES[severity - 1]
    assert set(np.unique(out)) == {0.0, 0.5, 1.0}
    for value in (0, 1):
        assert (out == value).mean() == pytest.approx(share / 2, rel=0.15)
    # Each channel has impulses of its own.
    hit = (out[0] != 0.5).all(axis=0).mean()
    assert hit < 0.01


# Blur


@pytest.mark.parametrize(
    ("severity", "radius", "blur"),
    [(1, 0.3, 0.4), (2, 0.4, 0.5), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1)],
)
def test_defocus_turns_a_point_into_a_smoothed_disk(severity, radius, blur):
    point = np.zeros((1, 1, 17, 17))
    point[..., 8, 8] = 1.0
    out = corrupt("defocus_blur", point, severity)[0, 0]
    y, x = np.mgrid[-8:9, -8:9]
    disk = (x**2 + y**2 <= radius**2) / (x**2 + y**2 <= radius**2).sum()
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * blur**2))
    taps /= taps.sum()
    expected = ndimage.correlate(disk, np.outer(taps, taps))
    np.testing.assert_allclose(out, expected, atol=1e-12)
    assert out.sum() == pytest.approx(1)


def test_defocus_mirrors_at_the_edges():
    X = images(2)
    kernel = corruptions._disk(1.5, 0.1)
    expected = ndimage.correlate(X, kernel[None, None], mode="mirror")
    np.testing.assert_allclose(corrupt("defocus_blur", X, 5), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("severity", "sigma", "rounds"),
    [(1, 0.05, 1), (2, 0.25, 1), (3, 0.4, 1), (4, 0.25, 2), (5, 0.4, 2)],
)
def test_glass_blur_follows_the_script(severity, sigma, rounds):
    """The script's loops, its swap of two views included, on the same draws."""
    (X,) = images(1)
    rng = draws("glass_blur", X)
    x = np.stack([ndimage.gaussian_filter(c, sigma, mode="nearest") for c in X], -1)
    for _ in range(rounds):
        steps = rng.integers(0, 2, size=(2, 32, 32))
        for h in range(31, 1, -1):
            for w in range(31, 1, -1):
                i, j = h - steps[0, h, w], w - steps[1, h, w]
                x[h, w], x[i, j] = x[i, j], x[h, w]
    expected = np.stack(
        [ndimage.gaussian_filter(x[..., k], sigma, mode="nearest") for k in range(3)]
    )
    out = corrupt("glass_blur", X[None], severity)[0]
    np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("severity", "radius", "sigma"),
    [(1, 6, 1), (2, 6, 1.5), (3, 6, 2), (4, 8, 2), (5, 9, 2.5)],
)
def test_motion_blur_is_half_a_gaussian_along_a_line(severity, radius, sigma):
    point = np.zeros((1, 1, 41, 41))
    point[..., 20, 20] = 1.0
    angle = np.deg2rad(draws("motion_blur", point).uniform(-45, 45))
    out = corrupt("motion_blur", point, severity)[0, 0]
    steps = np.arange(2 * radius + 1)
    taps = np.exp(-(steps**2) / (2 * sigma**2))
    taps /= taps.sum()
    expected = np.zeros((41, 41))
    for step, tap in zip(steps, taps, strict=True):
        y, x = (int(np.ceil(step * f(angle) - 0.5)) for f in (np.sin, np.cos))
        expected[20 - y, 20 - x] += tap
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert out.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [32, 33])
def test_zoom_blur_is_the_mean_of_scipy_s_zooms(severity, size):
    (X,) = images(1, (3, size, size))
    total = X.copy()
    for factor in ZOOMS[severity - 1]:
        n = int(np.ceil(size / factor))
        top = (size - n) // 2
        part = X[:, top : top + n, top : top + n]
        zoomed = ndimage.zoom(part, (1, factor, factor), order=1)
        trim = (zoomed.shape[1] - size) // 2
        total += zoomed[:, trim : trim + size, trim : trim + size]
    expected = total / (len(ZOOMS[severity - 1]) + 1)
    out = corrupt("zoom_blur", X[None], severity)[0]
    np.testing.assert_allclose(out, expected, atol=1e-10)


# Weather


def script_plasma(rng, size, decay):
    """Return the script's height map, a point at a time, on the same draws."""
    noise = rng.uniform(-1, 1, size=(size, size))
    heights = np.zeros((size, size))
    step, spread = size, 100.0
    while step >= 2:
        half = step // 2
        places = range(0, size, step)
        for i in places:
            for j in places:
                mean = sum(
                    heights[(i + a) % size, (j + b) % size]
                    for a in (0, step)
                    for b in (0, step)
                )
                shake = spread**2 * noise[i + half, j + half]
                heights[i + half, j + half] = mean / 4 + shake
        around = ((-half, 0), (half, 0), (0, -half), (0, half))
        for i in places:
            for j in places:
                for y, x in ((i, j + half), (i + half, j)):
                    mean = sum(
                        heights[(y + a) % size, (x + b) % size] for a, b in around
                    )
                    heights[y, x] = mean / 4 + spread**2 * noise[y, x]
        step, spread = half, spread / decay
    heights -= heights.min()
    return heights / heights.max()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_fog_follows_the_script(severity):
    (X,) = images(1)
    density, decay = FOGS[severity - 1]
    fog = script_plasma(draws("fog", X), 32, decay)
    brightest = X.max()
    expected = (X + density * fog) * brightest / (brightest + density)
    out = corrupt("fog", X[None], severity)[0]
    np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("severity", "opacity"), list(enumerate((0.95, 0.9, 0.9, 0.85, 0.8), start=1))
)
def test_snow_whitens_and_adds_flakes_with_half_a_turn(severity, opacity):
    X = np.full((1, 3, 32, 32), 0.2)
    flakes = corrupt("snow", X, severity)[0]
    # The image shines through where no flake is.
    ground = opacity * 0.2 + (1 - opacity) * (1.5 * 0.2 + 0.5)
    assert flakes.min() >= ground - 1e-12
    np.testing.assert_allclose(flakes, flakes[:, ::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(flakes[0], flakes[1])
    assert flakes.max() > ground + 0.1


def test_frost_lays_ice_over_the_image():
    levels = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    X = images(1) / 2
    outs = [corrupt("frost", X, severity) for severity in (1, 2, 3, 4, 5)]
    ices = [(out - a * X) / b for out, (a, b) in zip(outs, levels, strict=True)]
    ice = ices[0]  # Nothing was clipped: half the image, and a fifth of the ice.
    assert 0.15 < ice.min() < ice.max() < 1 + 1e-9
    assert ice.std() > 0.1
    for (a, b), out in zip(levels, outs, strict=True):
        np.testing.assert_allclose(out, np.minimum(a * X + b * ice, 1), atol=1e-12)
    means = ice.mean(axis=(0, 2, 3))
    assert means[0] < means[1] < means[2]  # Bluish.


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_raises_the_value_of_hsv(severity):
    (X,) = images(1, (3, 8, 8))
    X[:, 0, 0] = 0
    expected = np.empty_like(X)
    for i, j in np.ndindex(8, 8):
        h, s, v = colorsys.rgb_to_hsv(*X[:, i, j])
        v = min(v + BRIGHTNESS[severity - 1], 1)
        expected[:, i, j] = colorsys.hsv_to_rgb(h, s, v)
    out = corrupt("brightness", X[None], severity)[0]
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_brightness_of_grey_is_a_sum():
    X = images(2, (1, 8, 8))
    expected = np.minimum(X + 0.15, 1)
    np.testing.assert_allclose(corrupt("brightness", X), expected, atol=1e-12)


# Digital


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_contrast_shrinks_each_channel_around_its_mean(severity):
    X = images()
    out = corrupt("contrast", X, severity)
    np.testing.assert_allclose(out.mean((2, 3)), X.mean((2, 3)))
    np.testing.assert_allclose(out.std((2, 3)), CONTRAST[severity - 1] * X.std((2, 3)))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [32, 7])
def test_pixelate_is_pillow_s_box_filter(severity, size):
    (X,) = images(1, (1, size, size))
    image = Image.fromarray(X[0].astype(np.float32))
    n = int(size * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    if size == 32:
        assert n == PIXELS[severity - 1]
    small = image.resize((n, n), Image.Resampling.BOX)
    expected = np.asarray(small.resize((size, size), Image.Resampling.BOX))
    out = corrupt("pixelate", X[None], severity)[0, 0]
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("severity", "quality"), list(enumerate((80, 65, 58, 50, 40), start=1))
)
def test_jpeg_is_pillow_s(severity, quality):
    X = images(2)
    out = corrupt("jpeg_compression", X, severity)
    for before, after in zip(X, out, strict=True):
        file = io.BytesIO()
        pixels = np.rint(255 * before.transpose(1, 2, 0)).astype(np.uint8)
        Image.fromarray(pixels).save(file, format="jpeg", quality=quality)
        expected = np.asarray(Image.open(file)).transpose(2, 0, 1) / 255
        np.testing.assert_array_equal(after, expected)


def test_jpeg_of_other_channels_is_grey():
    X = images(2, (2, 16, 16))
    out = corrupt("jpeg_compression", X)
    one = corrupt("jpeg_compression", X[:, :1])
    np.testing.assert_array_equal(out[:, :1], one)
    assert 0 < np.abs(out - X).mean() < 0.05


def test_elastic_severity_one_is_an_affine_map():
    """A plane stays a plane, where no edge was crossed."""
    y, x = np.mgrid[:33, :33] / 64.0
    X = (0.2 + x / 2 + y / 3)[None, None]
    out = corrupt("elastic_transform", X, 1)[0, 0, 12:21, 12:21]
    i, j = np.mgrid[:9, :9]
    design = np.column_stack([np.ones(81), i.ravel(), j.ravel()])
    fit, *_ = np.linalg.lstsq(design, out.ravel())
    np.testing.assert_allclose(design @ fit, out.ravel(), atol=1e-10)
    assert np.abs(out - X[0, 0, 12:21, 12:21]).max() > 1e-3


def test_elastic_moves_three_points_as_far_as_published():
    X = images(1)
    moves = 32 * 0.08 * draws("elastic_transform", X).uniform(-1, 1, size=(3, 2))
    points = 16 + 10 * np.array([[1, 1], [1, -1], [-1, -1]])
    y, x = np.mgrid[:32, :32]
    assert np.abs(moves).max() <= 2.56
    source = points + moves
    forward = np.linalg.solve(np.column_stack([points, np.ones(3)]), source)
    back = np.linalg.inv(np.column_stack([forward, [0, 0, 1]]))
    at = np.stack([x, y, np.ones((32, 32))], -1) @ back
    expected = np.stack(
        [
            ndimage.map_coordinates(c, [at[..., 1], at[..., 0]], order=1, mode="mirror")
            for c in X[0]
        ]
    )
    out = corrupt("elastic_transform", X, 1)[0]
    np.testing.assert_allclose(out, expected, atol=1e-10)


def test_elastic_displacements_are_smoothed_draws():
    (X,) = images(1)
    rng = draws("elastic_transform", X)
    rng.uniform(-1, 1, size=(3, 2))
    noise = rng.uniform(-1, 1, size=(2, 32, 32))
    smooth = [
        ndimage.gaussian_filter(part, 0.96, mode="reflect", truncate=3)
        for part in noise
    ]
    # The affine part, by the same severity without displacements.
    warped = corruptions._elastic_transform(
        X[None], [draws("elastic_transform", X)], 0, 0, 0.03
    )[0]
    at = np.mgrid[:32, :32] + 3.2 * np.array(smooth)
    expected = [ndimage.map_coordinates(c, at, order=1, mode="mirror") for c in warped]
    out = corrupt("elastic_transform", X[None], 5)[0]
    np.testing.assert_allclose(out, expected, atol=1e-10)


# Bad input


@pytest.mark.parametrize("severity", [0, 6, 2.5, "3", None])
def test_invalid_severity(severity):
    with pytest.raises(ValueError, match="'severity' parameter of Corruption"):
        Corruption(severity=severity).fit(images())


def test_invalid_kind():
    with pytest.raises(ValueError, match="'kind' parameter of Corruption"):
        Corruption("rain").fit(images())


@pytest.mark.parametrize("factor", [255, -1, 1.01])
def test_values_beyond_the_range(factor):
    X = images()
    X[0, 0, 0, :2] = 0, 1
    shift = Corruption().fit(X)
    for method in (shift.fit, shift.transform):
        with pytest.raises(ValueError, match=r"X must hold values in \[0, 1\], got"):
            method(factor * X)
    with pytest.raises(ValueError, match=r"got 0 to 255\. Divide 8-bit images by 255"):
        shift.fit(np.array([[0, 255, 3]], dtype=np.uint8))


def test_rounding_beyond_the_range_is_clipped():
    X = np.array([[-1e-7, 1 + 1e-7, 0.5, 0.5]])
    out = corrupt("contrast", X, image_shape=(2, 2))
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad):
    X = images()
    X[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        Corruption().fit(X)


@pytest.mark.parametrize(
    "shape",
    [(8, 9), (64,), (1, 1, 8, 8), (), (2, 8, 8), (-8, -8), (0, 8), (8.5, 8), (8.0, 8)],
)
def test_image_shape_must_match(shape):
    with pytest.raises(ValueError, match="image_shape must be") as error:
        Corruption(image_shape=shape).fit(np.zeros((2, 64)))
    assert f"got {shape}" in str(error.value)
    assert "64 values" in str(error.value)


def test_rows_of_unknown_shape():
    with pytest.raises(ValueError, match=r"got None for 65 columns\. Pass"):
        Corruption().fit(np.zeros((2, 65)))


def test_images_of_another_shape():
    X = np.zeros((2, 1, 4, 9))
    with pytest.raises(ValueError, match=r"images in X, \(1, 4, 9\), got \(6, 6\)"):
        Corruption(image_shape=(6, 6)).fit(X)
    with pytest.raises(ValueError, match=r"\(1, 4, 9\) that fit saw, got \(1, 6, 6\)"):
        Corruption().fit(X).transform(np.zeros((2, 1, 6, 6)))
    for ndim in (3, 5):
        with pytest.raises(ValueError, match=r"images \(n, c, h, w\), got the shape"):
            Corruption().fit(np.zeros((2,) * ndim))


def test_pillow_is_needed_for_jpeg_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    X = images(1)
    for kind in set(CORRUPTIONS) - {"jpeg_compression"}:
        corrupt(kind, X)
    with pytest.raises(ImportError, match=r"pip install 'sksoftrank\[image\]'"):
        corrupt("jpeg_compression", X)
