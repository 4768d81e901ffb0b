"""The fifteen corruptions of CIFAR-10-C, with their five severities, for any images.

Kinds and strengths are those of Hendrycks and Dietterich (2019) for images of 32 x 32
pixels, as in their script ``make_cifar_c.py``. Lengths stay in pixels, so that larger
images suffer less. Where this departs from the script:

- Frost there lays photographs of ice over the image. They are not ours to ship, so a
  texture is made: needles of ice in a few directions over a bluish haze.
- Values stay real numbers, where the script rounds to 8 bits between steps and at the
  end. JPEG alone rounds.
- Motion blur there is ImageMagick's, and warps are OpenCV's in fixed point. Here are
  their formulas, in double precision.
- Noise is drawn for each image from a generator of its own, see `Corruption`.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.preprocessing import scale
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted

from sksoftrank._sklearn import Interval, StrOptions, _fit_context, read_rows

__all__ = ["CORRUPTIONS", "Corruption"]

Array = npt.NDArray[Any]
Generators = list[np.random.Generator]

# Values that are transformed at once: a few copies of them fit in a cache.
_CHUNK = 2**18
# Beyond [0, 1] by this much is rounding, of a resized image for example.
_SLACK = 1e-6


def _draw(rngs: Generators, kind: str, *args: Any, **kwargs: Any) -> Array:
    """Return a draw of each image's generator."""
    return np.stack([getattr(rng, kind)(*args, **kwargs) for rng in rngs])


# What each kind does, and its strengths at severities 1 to 5.
_KINDS: dict[str, tuple[Callable[..., Array], tuple[Any, ...]]] = {}


def _strengths(*levels: Any) -> Callable[..., Any]:
    """Make a function that corrupts images one of the kinds."""

    def register(corrupt: Callable[..., Array]) -> Callable[..., Array]:
        _KINDS[corrupt.__name__.removeprefix("_")] = corrupt, levels
        return corrupt

    return register


# -- Noise -------------------------------------------------------------------------


@_strengths(0.04, 0.06, 0.08, 0.09, 0.10)
def _gaussian_noise(images: Array, rngs: Generators, level: float) -> Array:
    return images + level * _draw(rngs, "standard_normal", images.shape[1:])


@_strengths(500, 250, 100, 75, 50)
def _shot_noise(images: Array, rngs: Generators, level: float) -> Array:
    """Count photons, `level` of them for white."""
    counts = [
        rng.poisson(level * image) for rng, image in zip(rngs, images, strict=True)
    ]
    return np.stack(counts) / level


@_strengths(0.01, 0.02, 0.03, 0.05, 0.07)
def _impulse_noise(images: Array, rngs: Generators, level: float) -> Array:
    """Set a share of the values, each channel's own, to 0 or 1."""
    draws = _draw(rngs, "random", images.shape[1:])
    # A draw below the level is uniform in [0, level): its half decides.
    return np.where(draws < level, draws < level / 2, images)


# -- Blur --------------------------------------------------------------------------


@_strengths((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
def _defocus_blur(images: Array, rngs: Generators, radius: float, blur: float) -> Array:
    return ndimage.correlate(images, _disk(radius, blur)[None, None], mode="mirror")


def _disk(radius: float, blur: float) -> Array:
    """Return a disk's kernel, of sum 1, smoothed by a Gaussian of 3 x 3 pixels."""
    half = int(radius) + 1
    squares = np.arange(-half, half + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * blur**2))
    taps /= taps.sum()
    return ndimage.convolve(disk / disk.sum(), np.outer(taps, taps), mode="constant")


@_strengths((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
def _glass_blur(images: Array, rngs: Generators, sigma: float, n_rounds: int) -> Array:
    """Let each pixel take the value of one that is up to a step up and left.

    The script means to swap the two, but both sides of its swap are views of an array:
    the first pixel takes the second's value, and the second keeps it. So are the
    published images. The walk from the last pixel to the first then reads no pixel
    that it has written, and all of them can be taken at once.
    """
    h, w = images.shape[2:]
    images = ndimage.gaussian_filter(images, sigma, mode="nearest", axes=(2, 3))
    each = np.arange(len(images))[:, None, None]
    # The script leaves the first two rows and columns alone.
    stays = np.minimum.outer(np.arange(h), np.arange(w)) < 2
    for _ in range(n_rounds):
        steps = _draw(rngs, "integers", 0, 2, size=(2, h, w))
        steps[:, :, stays] = 0
        y = np.arange(h)[:, None] - steps[:, 0]
        x = np.arange(w) - steps[:, 1]
        images = images[each, :, y, x].transpose(0, 3, 1, 2)
    return ndimage.gaussian_filter(images, sigma, mode="nearest", axes=(2, 3))


@_strengths((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
def _motion_blur(images: Array, rngs: Generators, radius: int, sigma: float) -> Array:
    return _smear(images, radius, sigma, _draw(rngs, "uniform", -45, 45))


def _smear(images: Array, radius: int, sigma: float, angles: Array) -> Array:
    """Blur along a line, one direction an image, as ImageMagick does.

    The kernel is half a Gaussian of 2 * radius + 1 taps, at whole pixels along the
    line; pixels beyond the edge repeat it.
    """
    h, w = images.shape[2:]
    steps = np.arange(2 * radius + 1)
    taps = np.exp(-(steps**2) / (2 * sigma**2))
    steps, taps = steps[taps > 1e-6], taps[taps > 1e-6]
    taps /= taps.sum()
    reach = int(steps[-1])
    padded = np.pad(images, [(0, 0)] * 2 + [(reach, reach)] * 2, "edge")
    smeared = np.empty_like(images)
    directions = np.deg2rad(angles)
    right = reach + np.ceil(np.outer(np.cos(directions), steps) - 0.5).astype(int)
    down = reach + np.ceil(np.outer(np.sin(directions), steps) - 0.5).astype(int)
    for k, source in enumerate(padded):
        smeared[k] = sum(
            tap * source[:, i : i + h, j : j + w]
            for tap, i, j in zip(taps, down[k], right[k], strict=True)
        )
    return smeared


# As many as the script's ranges hold: rounding adds an end to the first two.
@_strengths(7, 12, 16, 21, 26)
def _zoom_blur(images: Array, rngs: Generators, n_zooms: int) -> Array:
    """Average the image with `n_zooms` zooms of it, by 1, 1.01 and so on."""
    n, c, h, w = images.shape
    blur = _zoom_matrix(h, w, n_zooms)
    return (blur @ images.reshape(n * c, h * w).T).T.reshape(images.shape)


@lru_cache(maxsize=2)  # It serves every chunk of a transform.
def _zoom_matrix(h: int, w: int, n_zooms: int) -> Any:
    blur = sparse.identity(h * w, format="csr")
    for k in range(n_zooms):
        # As numpy.arange counts, which decides how 32.5 rounds.
        factor = 1 + k * (1.01 - 1)
        blur += sparse.kron(_zoom(h, factor), _zoom(w, factor), format="csr")
    return blur / (n_zooms + 1)


def _zoom(size: int, factor: float) -> Array:
    """Return the matrix (size, size) that enlarges the middle of a line linearly."""
    n_source = math.ceil(size / factor)
    start = (size - n_source) // 2
    middle = np.eye(size)[start : start + n_source]
    zoomed = ndimage.zoom(middle, (factor, 1), order=1)
    trim = (len(zoomed) - size) // 2
    return zoomed[trim : trim + size]


# -- Weather -----------------------------------------------------------------------


@_strengths(
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
def _snow(images: Array, rngs: Generators, *level: Any) -> Array:
    mean, deviation, zoom, threshold, radius, sigma, opacity = level
    h, w = images.shape[2:]
    draws = _draw(rngs, "standard_normal", (1, h, w))
    flakes = _zoom(h, zoom) @ (mean + deviation * draws)
    flakes = flakes @ _zoom(w, zoom).T
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _smear(flakes, radius, sigma, _draw(rngs, "uniform", -135, -45))
    whitened = np.maximum(images, 1.5 * _grey(images) + 0.5)
    images = opacity * images + (1 - opacity) * whitened
    return images + flakes + flakes[:, :, ::-1, ::-1]


_LUMA = (0.299, 0.587, 0.114)


def _grey(images: Array) -> Array:
    """Return the luma (n, 1, h, w) of red, green and blue, else the channels' mean."""
    weights = _LUMA if images.shape[1] == 3 else None
    return np.average(images, axis=1, weights=weights, keepdims=True)


@_strengths((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
def _frost(images: Array, rngs: Generators, keep: float, cover: float) -> Array:
    return keep * images + cover * _ice(images.shape, rngs)


# Red, green and blue of the shade between the needles of ice, and of the needles.
_ICE = np.array([[0.20, 0.26, 0.34], [0.88, 0.94, 1.00]])


def _ice(shape: tuple[int, ...], rngs: Generators) -> Array:
    """Return textures of frosted glass: needles in three directions over a haze."""
    n, c, h, w = shape
    draws = _draw(rngs, "standard_normal", (4, h, w))
    haze = ndimage.gaussian_filter(draws[:, :1], 4.0, axes=(2, 3))
    haze = scale(haze.reshape(n, -1), axis=1).reshape(haze.shape)
    first = _draw(rngs, "uniform", 0, 180)
    needles = np.zeros((n, 1, h, w))
    for k, turn in enumerate((0.0, 60.0, 120.0)):  # Ice grows at angles of 60 degrees.
        # One draw in sixteen is a grain that grows a needle to either side.
        grains = np.maximum(draws[:, k + 1 : k + 2] - 1.5, 0)
        for side in (0.0, 180.0):
            needles += _smear(grains, 6, 3.0, first + turn + side)
    # Needles crowd where the haze is thick.
    thickness = np.clip(0.2 + 0.1 * haze + needles * np.exp(0.5 * haze), 0, 1)
    colours = _ICE if c == 3 else np.repeat((_ICE @ _LUMA)[:, None], c, axis=1)
    shade, ice = colours[:, :, None, None]
    return shade + (ice - shade) * thickness


# The fog smooths out less at high severities.
@_strengths((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
def _fog(images: Array, rngs: Generators, density: float, decay: float) -> Array:
    h, w = images.shape[2:]
    size = _fog_size(h, w)
    draws = _draw(rngs, "uniform", -1, 1, size=(size, size))
    fog = _plasma(draws, decay)[:, None, :h, :w]
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    return (images + density * fog) * brightest / (brightest + density)


def _fog_size(h: int, w: int) -> int:
    """Return the power of two, at least 2, that the larger of the sides fits in."""
    return max(2, 1 << (max(h, w) - 1).bit_length())


def _plasma(draws: Array, decay: float) -> Array:
    """Return height maps (n, size, size) in [0, 1] by the diamond-square algorithm.

    Each new point is the mean of four around it, and a draw that shrinks with the
    distance between them. The map wraps around.
    """
    size = draws.shape[1]
    heights = np.zeros_like(draws)
    step, spread = size, 100.0
    while step >= 2:
        half = step // 2
        # The draw at a point is the one in its place: each point is set once.
        shake = spread**2 * draws
        corners = heights[:, ::step, ::step]
        total = corners + np.roll(corners, -1, axis=1)
        total = total + np.roll(total, -1, axis=2)
        middle = total / 4 + shake[:, half::step, half::step]
        heights[:, half::step, half::step] = middle
        for axis, places in (
            (2, np.s_[:, ::step, half::step]),
            (1, np.s_[:, half::step, ::step]),
        ):
            around = corners + np.roll(corners, -1, axis)
            around = around + (middle + np.roll(middle, 1, 3 - axis))
            heights[places] = around / 4 + shake[places]
        step, spread = half, spread / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights


@_strengths(0.05, 0.1, 0.15, 0.2, 0.3)
def _brightness(images: Array, rngs: Generators, level: float) -> Array:
    """Raise the value of hue, saturation and value, the largest of the channels.

    With hue and saturation as they were, all channels scale with the value.
    """
    value = images.max(axis=1, keepdims=True)
    brighter = np.minimum(value + level, 1)
    # Black has no hue: it turns grey.
    factor = brighter / np.where(value > 0, value, 1)
    return np.where(value > 0, images * factor, brighter)


# -- Digital -----------------------------------------------------------------------


@_strengths(0.75, 0.5, 0.4, 0.3, 0.15)
def _contrast(images: Array, rngs: Generators, level: float) -> Array:
    means = images.mean(axis=(2, 3), keepdims=True)
    return means + level * (images - means)


@_strengths(
    *((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06)),
    *((0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
)
def _elastic_transform(images: Array, rngs: Generators, *level: float) -> Array:
    """Warp by a random affine map, then by smooth random displacements.

    The level's numbers, in shares of the shorter side, are the displacements' size
    before they are smoothed, the smoothing's deviation, and how far the three points
    that fix the affine map may move.
    """
    h, w = images.shape[2:]
    size, sigma, shake = np.multiply(min(h, w), level)
    y, x = np.mgrid[:h, :w].astype(np.float64)

    centre = np.array([w // 2, h // 2])
    corners = np.array([[1, 1], [1, -1], [-1, -1]])
    points = centre + max(1, min(h, w) // 3) * corners
    moves = _draw(rngs, "uniform", -1, 1, size=(3, 2))
    # The image is read where each of its new points comes from: the map from the
    # moved points to where they were, as (x, y, 1) @ (3, 2).
    moved = np.concatenate([points + shake * moves, np.ones((len(moves), 3, 1))], 2)
    back = np.linalg.solve(moved, np.broadcast_to(points, (len(moves), 3, 2)))
    source = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) @ back
    source = source.reshape(-1, h, w, 2)
    images = _sample(images, source[..., 1], source[..., 0])

    draws = _draw(rngs, "uniform", -1, 1, size=(2, h, w))
    shifts = size * ndimage.gaussian_filter(draws, sigma, truncate=3, axes=(2, 3))
    return _sample(images, y + shifts[:, 0], x + shifts[:, 1])


def _sample(images: Array, y: Array, x: Array) -> Array:
    """Interpolate linearly at points (n, h, w), in a mirror beyond the edges."""
    sampled = np.empty_like(images)
    for k, image in enumerate(images):
        for source, target in zip(image, sampled[k], strict=True):
            ndimage.map_coordinates(source, [y[k], x[k]], target, 1, mode="mirror")
    return sampled


@_strengths(0.95, 0.9, 0.85, 0.75, 0.65)
def _pixelate(images: Array, rngs: Generators, level: float) -> Array:
    rows, columns = (_coarsen(size, level) for size in images.shape[2:])
    return rows @ images @ columns.T


def _coarsen(size: int, level: float) -> Array:
    """Return the matrix (size, size) that shrinks a line and enlarges it again.

    Both are Pillow's box filter: a pixel belongs to the coarse one that its centre
    lies in, and each takes the nearest coarse one's mean.
    """
    n_coarse = max(1, int(size * level))
    width = size / n_coarse
    centres = np.arange(size) + 0.5
    # Edges round as Pillow's do: half goes up.
    edges = np.floor(np.arange(n_coarse + 1) * width + 0.5).astype(int)
    owner = np.searchsorted(edges, np.arange(size), side="right") - 1
    is_own = owner == np.arange(n_coarse)[:, None]
    means = is_own / is_own.sum(axis=1, keepdims=True)
    return means[np.minimum((centres / width).astype(int), n_coarse - 1)]


@_strengths(80, 65, 58, 50, 40)
def _jpeg_compression(images: Array, rngs: Generators, quality: int) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "jpeg_compression needs Pillow: pip install 'sksoftrank[image]'."
        ) from error
    c, h, w = images.shape[1:]
    pixels = np.rint(255 * images).astype(np.uint8)
    # In colour where there are three channels, else each channel as a grey image.
    pixels = pixels.transpose(0, 2, 3, 1) if c == 3 else pixels.reshape(-1, h, w)
    pixels = np.ascontiguousarray(pixels)
    for k, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="jpeg", quality=quality)
        with Image.open(file) as compressed:
            pixels[k] = np.asarray(compressed)
    compressed_images = pixels.transpose(0, 3, 1, 2) if c == 3 else pixels
    return compressed_images.reshape(images.shape) / 255


# -- All of them -------------------------------------------------------------------

CORRUPTIONS = tuple(_KINDS)


class Corruption(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Corrupt images in one of the fifteen ways of CIFAR-10-C.

    Nothing is learnt from the training images, so that ``fit_transform`` on test images
    leaks nothing. An image's noise is drawn from a generator seeded by
    `random_state`, the kind and the image itself, in 8 bits: it is the same wherever
    the image stands and whatever comes with it, and the same draw serves all
    severities. Equal images get equal noise.

    Strengths are those for 32 x 32 pixels. ``"elastic_transform"`` scales with the
    image, all else stays in pixels and values. With the severity grows the mean
    distance from the images, with four exceptions that come from the published
    strengths: ``"elastic_transform"`` warps the whole less and the details more;
    ``"glass_blur"`` moves pixels once up to 3 and twice from 4 on, and blurs more
    within each; ``"motion_blur"`` is the same at 3 and 4, whose kernels differ in taps
    of no weight; and ``"frost"`` dims the image from 3 on, which makes up for the
    brighter ice.

    Parameters
    ----------
    kind : str, default="gaussian_noise"
        One of `CORRUPTIONS`: ``"gaussian_noise"``, ``"shot_noise"``,
        ``"impulse_noise"``, ``"defocus_blur"``, ``"glass_blur"``, ``"motion_blur"``,
        ``"zoom_blur"``, ``"snow"``, ``"frost"``, ``"fog"``, ``"brightness"``,
        ``"contrast"``, ``"elastic_transform"``, ``"pixelate"`` or
        ``"jpeg_compression"``, which needs Pillow.
    severity : int, default=3
        From 1 to 5.
    image_shape : tuple of int, default=None
        (channels, height, width) or (height, width) of an image. None takes it from
        images (n, c, h, w), and rows for square images, grey or of three channels.
    random_state : int, RandomState instance or None, default=None
        Seeds the noise. With an int it is the same at each transform.

    Attributes
    ----------
    image_shape_ : tuple of int
        (channels, height, width).
    n_features_in_ : int
        Values of an image.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    References
    ----------
    D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common
    Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261. Section 3 and
    appendix B say what the kinds are.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.corruptions import CORRUPTIONS, Corruption
    >>> X = np.linspace(0, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    >>> Corruption("fog", severity=5, random_state=0).fit_transform(X).shape
    (2, 3, 32, 32)
    >>> Corruption("contrast", severity=3).fit_transform([[0.0, 0.0, 1.0, 1.0]])
    array([[0.3, 0.3, 0.7, 0.7]])
    >>> len(CORRUPTIONS)
    15
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "kind": [StrOptions(set(CORRUPTIONS))],
        "severity": [Interval(Integral, 1, 5, closed="both")],
        "image_shape": ["array-like", None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        kind: str = "gaussian_noise",
        severity: int = 3,
        *,
        image_shape: Sequence[int] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.kind = kind
        self.severity = severity
        self.image_shape = image_shape
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: npt.ArrayLike, y: Any = None) -> Corruption:
        """Check the images and read their shape.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, c, h, w)
            Images with values in [0, 1], as rows (channels, then lines) or not.
        y : None
            Ignored.

        Returns
        -------
        Corruption
            Itself.

        Raises
        ------
        ValueError
            If a parameter is out of range, a value is not in [0, 1], or the shape is
            not that of an image.
        """
        rows, shape = self._validate(X, reset=True)
        self._check_range(rows)
        self.image_shape_ = self._image_shape(shape)
        return self

    def transform(self, X: npt.ArrayLike) -> Array:
        """Return a corrupted copy of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, c, h, w)
            Images with values in [0, 1].

        Returns
        -------
        ndarray
            In the shape and the dtype of `X`, with values in [0, 1].

        Raises
        ------
        ValueError
            If a value is not in [0, 1], or the shape is not the one of `fit`.
        ImportError
            If the kind is ``"jpeg_compression"`` and Pillow is not installed.
        """
        check_is_fitted(self)
        rows, shape = self._validate(X, reset=False)
        if shape is not None and shape != self.image_shape_:
            raise ValueError(
                f"X must hold images of the shape {self.image_shape_} that fit saw, "
                f"got {shape}. Fit on such images."
            )
        rows = self._check_range(rows)
        corrupt, levels = _KINDS[self.kind]
        level = levels[self.severity - 1]
        strength = level if isinstance(level, tuple) else (level,)
        # Fresh entropy rather than numpy's global generator.
        salt = check_random_state(
            np.random.RandomState() if self.random_state is None else self.random_state
        ).randint(2**31)
        key = f"{self.kind} {salt}".encode()
        corrupted = np.empty_like(rows)
        for part in self._chunks(len(rows)):
            images = rows[part].astype(np.float64).clip(0, 1)
            rngs = _generators(images, key)
            result = corrupt(images.reshape(-1, *self.image_shape_), rngs, *strength)
            corrupted[part] = result.clip(0, 1).reshape(images.shape)
        return corrupted if shape is None else corrupted.reshape(-1, *shape)

    def _validate(self, X: Any, reset: bool) -> tuple[Array, tuple[int, ...] | None]:
        """Return rows, and the shape of an image where `X` has it."""
        if isinstance(X, list | tuple):
            X = np.asarray(X)
        n_dims = getattr(X, "ndim", 2)
        shape = None
        if n_dims == 4:
            X = np.asarray(X)
            shape = tuple(X.shape[1:])
            X = X.reshape(len(X), math.prod(shape))
        elif n_dims == 3 or n_dims > 4:
            raise ValueError(
                "X must be rows (n, d) or images (n, c, h, w), got the shape "
                f"{tuple(X.shape)}. Give grey images one channel: X[:, None]."
            )
        rows: Array = read_rows(self, X, dtype=[np.float64, np.float32], reset=reset)
        return rows, shape

    def _check_range(self, rows: Array) -> Array:
        low, high = rows.min(), rows.max()
        if low < -_SLACK or high > 1 + _SLACK:
            raise ValueError(
                f"X must hold values in [0, 1], got {low:.4g} to {high:.4g}. Divide "
                "8-bit images by 255; corrupt images before they are standardised."
            )
        return rows

    def _image_shape(self, seen: tuple[int, ...] | None) -> tuple[int, int, int]:
        n_values = self.n_features_in_
        sizes: Any = seen if self.image_shape is None else self.image_shape
        if sizes is None:
            for channels in (1, 3):
                side = math.isqrt(n_values // channels)
                if channels * side**2 == n_values:
                    return (channels, side, side)
            raise ValueError(
                "image_shape must be given where rows are no square images of one or "
                f"three channels, got None for {n_values} columns. Pass (channels, "
                "height, width)."
            )
        if (
            len(sizes) not in (2, 3)
            or not all(isinstance(size, Integral) for size in sizes)
            or min(sizes) < 1
            or math.prod(map(int, sizes)) != n_values
        ):
            raise ValueError(
                "image_shape must be (channels, height, width) or (height, width), "
                f"positive integers with the {n_values} values of an image as their "
                f"product, got {sizes!r}. Pass the shape of one image."
            )
        c, h, w = (1, *sizes) if len(sizes) == 2 else sizes
        shape = (int(c), int(h), int(w))
        if seen is not None and seen != shape:
            raise ValueError(
                f"image_shape must be that of the images in X, {seen}, got {sizes!r}. "
                "Leave it out."
            )
        return shape

    def _chunks(self, n: int) -> Iterator[slice]:
        _, h, w = self.image_shape_
        n_values = self.n_features_in_
        if self.kind == "fog":
            n_values = max(n_values, _fog_size(h, w) ** 2)
        return gen_batches(n, max(1, _CHUNK // n_values))


def _generators(images: Array, key: bytes) -> Generators:
    """Return a generator for each row, from the row's own values and the key."""
    # In 8 bits a row has one seed in float32 and in float64.
    pixels = np.rint(255 * images).astype(np.uint8)
    hashes = (hashlib.blake2b(row.tobytes(), key=key, digest_size=16) for row in pixels)
    return [
        np.random.default_rng(int.from_bytes(each.digest(), "little"))
        for each in hashes
    ]
