r"""What temperature does to the rank of logits: closed forms, bounds and an ODE.

Nothing here trains a network or reads data. ``C`` is the number of classes and ``T``
the temperature of the loss ``cross_entropy(logits / T, y)`` throughout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, linprog, minimize
from scipy.special import logsumexp

from sksoftrank._checks import (
    as_matrix,
    as_numbers,
    check_int,
    check_not_negative,
    check_real,
)

__all__ = [
    "RankPrediction",
    "argmaxable",
    "dual_settings",
    "minimal_logit_norm",
    "minimal_rank",
    "predict_rank",
    "softmax_rank_bound",
    "temperature_for_rank",
]

FloatArray = npt.NDArray[np.float64]

# Steps of the flow before it is given up. Hard cases take a thousand.
MAX_STEPS = 20_000
MAX_STAGES = 60
# A class leads by less than this share of the spread of the biases only by rounding.
MARGIN = 1e-6


def _check_positive(name: str, value: Any) -> float:
    return check_real(name, value, 0.0, math.inf, "Use e.g. 1.0.")


def _check_classes(n_classes: Any) -> int:
    return check_int("n_classes", n_classes, 2, math.inf, "One class needs no logits.")


def _check_probability(probability: Any, n_classes: int) -> float:
    fix = "Logits of zero reach one over the number of classes; none reach 1."
    return check_real("probability", probability, 1 / n_classes, 1.0, fix)


def _check_rank(rank: Any, n_classes: int) -> int:
    # On a line, one class of three lies between the others.
    low = min(2, n_classes - 1)
    fix = (
        f"{n_classes} classes can all be told apart from {low} dimensions on, and have "
        f"no use for more than {n_classes - 1}."
    )
    return check_int("rank", rank, low, n_classes - 1, fix)


# -- Temperature as other settings -------------------------------------------------


def dual_settings(
    temperature: float,
    n_layers: int,
    optimizer: str,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    init_scale: float = 1.0,
) -> dict[str, float]:
    r"""Give the settings at temperature 1 that train the same network as those given.

    For a network of `n_layers` weight matrices without biases and normalisation, linear
    or with activations that pass on positive factors (ReLU), whose logits are then
    homogeneous of degree N in the weights.

    Parameters
    ----------
    temperature : float
        Positive. Temperature T of the loss.
    n_layers : int
        Number N of weight matrices, the head's included.
    optimizer : {"adam", "adamw", "sgd"}
        As in the estimators. "sgd" with or without momentum, dampening or Nesterov's
        form; these, and the betas of "adam" and "adamw", stay as they are.
    learning_rate : float
        Positive. Learning rate of the training at T; that of a schedule at each step.
    weight_decay : float, default=0.0
        Non-negative. Weight decay of the training at T, decoupled for "adamw".
    eps : float, default=1e-8
        Non-negative. What "adam" and "adamw" add to the root of the second moment.
    init_scale : float, default=1.0
        Positive. Factor of all initial weights of the training at T.

    Returns
    -------
    dict
        ``temperature`` (1.0), ``learning_rate``, ``weight_decay``, ``init_scale`` and,
        except for "sgd", ``eps``. Started from weights ``init_scale`` times the
        original ones, training with these gives ``logits / T`` at every step.

    Raises
    ------
    ValueError
        If a parameter is out of range or `optimizer` is another.

    Notes
    -----
    With ``w = c w'`` and ``c = T ** (1 / N)``, ``logits(w) = T logits(w')``, so that
    the loss at T as a function of w is the loss at 1 of w', and the gradients obey
    ``g = g' / c``. One step then reads in w' :

    - SGD, ``w -= lr (g + wd w)``: ``w' -= lr c**-2 (g' + wd c**2 w')``. Momentum
      averages the bracket and changes nothing: rate ``lr T**(-2/N)``, decay
      ``wd T**(2/N)``.
    - Adam: the moments of ``g + wd w = (g' + wd c**2 w') / c`` are those of the bracket
      over c and over c squared, hence ``w' -= (lr / c) m' / (sqrt(v') + c eps)``: rate
      ``lr T**(-1/N)``, decay ``wd T**(2/N)``, eps ``eps T**(1/N)``.
    - AdamW: its decay ``w -= lr wd w`` is outside of the moments, ``w' -= (lr / c)
      (wd c) w'``: rate, eps as for Adam, decay ``wd T**(1/N)``.

    In all of them weights start ``T**(-1/N)`` times as large.

    So temperature alone adds nothing in such networks, and a comparison of temperatures
    at a rate of ``lr T**p`` has a matched control at temperature 1: the rate
    ``lr T**(p - 1/N)`` for Adam, ``lr T**(p - 2/N)`` for SGD, and the other settings as
    returned here. It is this function's answer for ``learning_rate=lr * T ** p``. Only
    the scale of the start is left to differ where ``p = 1/N`` or ``p = 2/N``. Biases
    and normalisation break the duality: they scale otherwise than the weights.

    References
    ----------
    Masarczyk et al. (2025), arXiv:2506.01562, on training at a temperature; Chizat,
    Oyallon and Bach (2019), "On lazy training in differentiable programming", NeurIPS,
    on the scale of homogeneous models.

    Examples
    --------
    >>> from sksoftrank.theory import dual_settings
    >>> dual_settings(16.0, 2, "sgd", learning_rate=0.1)["learning_rate"]
    0.00625
    >>> dual_settings(16.0, 2, "adam", learning_rate=0.1)["init_scale"]
    0.25
    """
    temperature = _check_positive("temperature", temperature)
    n_layers = check_int(
        "n_layers", n_layers, 1, math.inf, "Count the weight matrices."
    )
    powers = {"sgd": (-2, 2), "adam": (-1, 2), "adamw": (-1, 1)}
    if optimizer not in powers:
        raise ValueError(
            f"optimizer must be one of {[*powers]}, got {optimizer!r}. No dual of "
            "others is known here."
        )
    c = temperature ** (1 / n_layers)
    of_rate, of_decay = powers[optimizer]
    settings = {
        "temperature": 1.0,
        "learning_rate": _check_positive("learning_rate", learning_rate) * c**of_rate,
        "weight_decay": check_not_negative("weight_decay", weight_decay) * c**of_decay,
        "init_scale": _check_positive("init_scale", init_scale) / c,
    }
    eps = check_not_negative("eps", eps) * c
    return settings if optimizer == "sgd" else {**settings, "eps": eps}


# -- The price of a rank -----------------------------------------------------------


def minimal_logit_norm(
    rank: int,
    n_classes: int,
    *,
    probability: float = 0.9,
    temperature: float = 1.0,
) -> float:
    r"""Smallest norm of a row of logits at which a rank still tells all classes apart.

    The least root mean square of the norms of the rows of a (C, C) matrix Z of rank at
    most `rank` in which ``softmax(Z[i] / T)[i] >= probability`` in each row.

    Parameters
    ----------
    rank : int
        From 2 (1 for two classes) to ``n_classes - 1``. Rank of the logits.
    n_classes : int
        At least 2. Number of classes.
    probability : float, default=0.9
        Between ``1 / n_classes`` and 1. Probability that each class is to reach on rows
        of its own.
    temperature : float, default=1.0
        Positive. The norm is proportional to it.

    Returns
    -------
    float
        Positive, falling with the rank; in the units of the logits.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    See Also
    --------
    minimal_rank : The least rank that a norm affords.

    Notes
    -----
    Let the rows of V (C, r) be C unit vectors and ``Z = rho V V.T``: a row has the norm
    ``rho sqrt(C / r)`` where V is a tight frame, ``V.T V = (C / r) I``. Three are known
    in closed form, with ``p`` the probability:

    - r = C - 1, the simplex, ``Z = s (I - 1/C)``: ``s = T log((C - 1) p / (1 - p))``,
      norm ``s sqrt(1 - 1/C)``. The least of any rank, since the rows allowed form
      convex sets and an average over all permutations keeps them.
    - r = C / 2, the orthoplex (each axis both ways): ``p = e^(rho/T) / (e^(rho/T) +
      e^(-rho/T) + C - 2)``, norm ``sqrt(2) rho``.
    - r = 2, the circle: ``p = e^(rho/T) / sum_j e^(rho cos(2 pi j / C) / T)``, norm
      ``rho sqrt(C / 2)``.

    Between them the minimum is sought by L-BFGS over ``Z = U V.T`` from four fixed
    starts. Scaling each row to where it just reaches p leaves an unconstrained problem:
    with ``q`` the softmax over the other classes, the factor ``a_i`` of row ``z_i``
    solves ``a z_ii - T logsumexp_j!=i(a z_ij / T) = T log(p / (1 - p))`` and has the
    derivative ``-a_i (e_i - q_i) / (z_i (e_i - q_i))``. As p nears 1 the solutions
    become spherical codes, that is, points as far apart as can be.

    Weight decay asks another price. N layers whose product is Z have the least sum of
    squared weights ``N sum_k s_k ** (2/N)`` of its singular values, so that decay
    ``lambda`` at temperature T weighs as ``lambda T ** (2/N)`` at 1. The simplex has
    ``C - 1`` values s, the orthoplex ``C / 2`` values 2 rho, and as p nears 1 the ratio
    of rho and s nears 1: there the orthoplex costs less where ``(C / 2) 2 ** (2/N) <
    C - 1``, for three layers from 6 classes on, for two never.

    References
    ----------
    Papyan, Han and Donoho (2020), "Prevalence of neural collapse", PNAS (the simplex);
    Jiang et al. (2024), "Generalized neural collapse for a large number of classes",
    ICML, on spherical codes; Shang et al. (2020), "Unified scalable equivalent
    formulations for Schatten quasi-norms", Mathematics 8(8), on the price in weights.

    Examples
    --------
    >>> from sksoftrank.theory import minimal_logit_norm
    >>> [round(minimal_logit_norm(rank, 10), 2) for rank in (2, 5, 9)]
    [33.85, 6.05, 4.17]
    """
    n_classes = _check_classes(n_classes)
    rank = _check_rank(rank, n_classes)
    p = _check_probability(probability, n_classes)
    T = _check_positive("temperature", temperature)
    return T * _norm_at_one(rank, n_classes, p)


@cache
def _norm_at_one(rank: int, C: int, p: float) -> float:
    if rank == C - 1:
        return math.log((C - 1) * p / (1 - p)) * math.sqrt(1 - 1 / C)
    if rank == 2:
        cosines = np.cos(2 * np.pi * np.arange(C) / C)
    elif 2 * rank == C:
        cosines = np.r_[1.0, -1.0, np.zeros(C - 2)]
    else:
        return _sought_norm(rank, C, p)

    def lacking(rho: float) -> float:
        return float(rho - logsumexp(rho * cosines) - math.log(p))

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return float(brentq(lacking, 0.0, high, xtol=1e-14)) * math.sqrt(C / rank)


def _sought_norm(rank: int, C: int, p: float) -> float:
    """Return the least norm that L-BFGS finds, at temperature 1."""
    target = math.log(p / (1 - p))
    others = ~np.eye(C, dtype=bool)

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        """Return the log of the sum of squares of the scaled rows, and its gradient."""
        U, V = x.reshape(2, C, rank)
        Z = U @ V.T
        D = (Z - np.diag(Z)[:, None])[others].reshape(C, C - 1)
        if D.max() >= -1e-9:  # No factor makes such a row's own class the largest.
            return 1e12, np.zeros_like(x)
        a = np.zeros(C)
        for _ in range(100):  # Newton's: concave and rising, so from the left it holds.
            q = np.exp(a[:, None] * (D - D.max(axis=1, keepdims=True)))
            lacking = target + a * D.max(axis=1) + np.log(q.sum(axis=1))
            q /= q.sum(axis=1, keepdims=True)
            slope = -(q * D).sum(axis=1)
            a += lacking / slope
            if (np.abs(lacking) <= 1e-12 * slope * a).all():
                break
        E = np.eye(C)
        E[others] = -q.ravel()
        squares = (Z**2).sum(axis=1)
        total = a**2 @ squares
        G = 2 * (a**2)[:, None] * (Z - (squares / slope)[:, None] * E) / total
        return math.log(total), np.concatenate([(G @ V).ravel(), (G.T @ U).ravel()])

    rng = np.random.default_rng(0)
    found = []
    for _ in range(4):
        V = rng.standard_normal((C, rank))
        V /= np.linalg.norm(V, axis=1, keepdims=True)
        x = np.concatenate([V.ravel(), V.ravel()])
        found.append(minimize(loss, x, jac=True, method="L-BFGS-B").fun)
    return math.sqrt(math.exp(min(found)) / C)


def minimal_rank(
    norm: float,
    n_classes: int,
    *,
    probability: float = 0.9,
    temperature: float = 1.0,
) -> int:
    """Least rank at which logits of a norm can still tell all classes apart.

    The inverse of `minimal_logit_norm`: the smallest rank whose norm is at most `norm`.

    Parameters
    ----------
    norm : float
        Positive. Root mean square of the norms of the rows of logits.
    n_classes : int
        At least 2. Number of classes.
    probability : float, default=0.9
        Between ``1 / n_classes`` and 1. Probability of each row's own class.
    temperature : float, default=1.0
        Positive. A higher one asks for more rank at the same norm.

    Returns
    -------
    int
        From 2 (1 for two classes) to ``n_classes - 1``; a network whose logits have
        this norm and reach this probability has no lower rank.

    Raises
    ------
    ValueError
        If a parameter is out of range, or if no rank reaches the probability with such
        a norm.

    See Also
    --------
    minimal_logit_norm : The norm that a rank asks for, with the derivation.

    Examples
    --------
    >>> from sksoftrank.theory import minimal_rank
    >>> [minimal_rank(norm, 10) for norm in (40.0, 10.0, 5.0)]
    [2, 4, 7]
    """
    n_classes = _check_classes(n_classes)
    norm = _check_positive("norm", norm)
    p = _check_probability(probability, n_classes)
    norm_at_one = norm / _check_positive("temperature", temperature)
    low, high = min(2, n_classes - 1), n_classes - 1
    # The inverse of a norm is to be its rank again, whatever the last digits.
    limit = norm_at_one * (1 + 1e-9)
    if _norm_at_one(high, n_classes, p) > limit:
        least = minimal_logit_norm(
            high, n_classes, probability=p, temperature=temperature
        )
        raise ValueError(
            f"norm must be at least {least:.4g} for {n_classes} classes to reach "
            f"probability={p:g} at temperature={temperature:g}, got {norm:g}. Raise "
            "it, or lower the probability or the temperature."
        )
    while low < high:
        middle = (low + high) // 2
        if _norm_at_one(middle, n_classes, p) <= limit:
            high = middle
        else:
            low = middle + 1
    return high


# -- The rank that training finds --------------------------------------------------


class RankPrediction(NamedTuple):
    """What the gradient flow of a deep linear network ends with.

    Parameters
    ----------
    rank : float
        Mean over the starts of the numerical rank.
    singular_values : ndarray of shape (n_starts, n_classes)
        Of the centred logits, descending.

    Examples
    --------
    >>> from sksoftrank.theory import predict_rank
    >>> rank, singular_values = predict_rank(1.0, 3, 8, n_starts=2)
    >>> singular_values.shape
    (2, 8)
    """

    rank: float
    singular_values: FloatArray


def predict_rank(
    temperature: float,
    n_layers: int,
    n_classes: int,
    *,
    width: int | None = None,
    init_scale: float = 1.0,
    probability: float = 0.9,
    tol: float = 1e-2,
    n_starts: int = 3,
    random_state: int = 0,
) -> RankPrediction:
    r"""Rank that a deep linear network ends with, by the gradient flow of its matrices.

    Parameters
    ----------
    temperature : float
        Positive. Temperature T of the loss.
    n_layers : int
        Number N of weight matrices, the head's included.
    n_classes : int
        At least 2. Number of classes, and of inputs: each class is one unit vector.
    width : int, default=None
        At least 2 (1 for two classes). Width of the hidden layers; None takes
        `n_classes`.
    init_scale : float, default=1.0
        Positive. Weights start normal with this over the root of the fan-in for
        standard deviation.
    probability : float, default=0.9
        Between ``1 / n_classes`` and 1. The flow ends when each class reaches it.
    tol : float, default=1e-2
        In [0, 1). Singular values of the logits, centred over the classes, count above
        this share of the largest, as in `rank_` of the estimators.
    n_starts : int, default=3
        Number of initial weights drawn; single ones differ by about half a rank.
    random_state : int, default=0
        Seed of the initial weights.

    Returns
    -------
    RankPrediction
        ``rank``, the mean over the starts, and their ``singular_values``.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    RuntimeError
        If the flow takes too many steps, as from very small weights.

    Notes
    -----
    With the classes as inputs the logits are ``Z = W_N ... W_1`` and the loss is the
    mean of ``-log softmax(Z / T)`` on the diagonal. Its flow,
    ``W_j' = (W_N ... W_j+1).T (I - P) (W_j-1 ... W_1).T / (T C)`` with
    ``P = softmax(Z / T)`` by columns, is solved for whole matrices, since neither the
    singular vectors nor a balance between the layers are there at the start. By
    `dual_settings` it is the flow at temperature 1 from weights ``T**(-1/N)`` times as
    large, and that is what is integrated: a high temperature is a small start, whose
    saddles are left one direction at a time. When the classes are told apart by the
    first of them the loss is small and the rest stay behind. With two layers,
    directions grow in proportion and the rank hardly depends on T.

    From a start in the Walsh basis H (``C = 2**k``), ``W_j = H diag(s**(1/N)) H.T``,
    the eigenvectors stay, and ``s_k' = N s_k**(2 - 2/N) (1 - p_k) / (T C)`` with
    ``p_k`` the eigenvalues of P: the test of the integrator. It predicts no rank, as
    equal ``s_k`` stay equal.

    For 2 to 6 layers, T from 0.1 to 1000 and 5 to 30 classes, ranks of networks trained
    from other starts differ from the prediction by 0.41 on average by gradient descent
    and by 0.50 by SGD on noisy batches, in the mean of three by at most 1.7; starts
    alone make 0.44 (``benchmarks/theory.py``). Adam is beyond the derivation: 0.80, and
    up to 7 with three layers, 30 classes and a high temperature, where its rank falls
    less.

    References
    ----------
    Saxe, McClelland and Ganguli (2014), "Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks", ICLR, equation 12 (squared loss, balanced
    modes); Jacot et al. (2021), "Saddle-to-saddle dynamics in deep linear networks",
    arXiv:2106.15933.

    Examples
    --------
    >>> from sksoftrank.theory import predict_rank
    >>> [round(predict_rank(T, 4, 10).rank, 1) for T in (0.1, 1.0, 100.0)]
    [7.7, 5.3, 3.0]
    """
    T = _check_positive("temperature", temperature)
    n_classes = _check_classes(n_classes)
    n_layers = check_int(
        "n_layers", n_layers, 1, math.inf, "Count the weight matrices."
    )
    least = min(2, n_classes - 1)
    width = n_classes if width is None else width
    fix = f"{n_classes} classes can be told apart from {least} units on."
    width = check_int("width", width, least, math.inf, fix)
    scale = _check_positive("init_scale", init_scale)
    p = _check_probability(probability, n_classes)
    if not isinstance(tol, Real) or not 0.0 <= float(tol) < 1.0:
        raise ValueError(
            "tol must be in [0, 1), a share of the largest singular value, got "
            f"{tol!r}. Use 1e-2 for directions above a hundredth of the largest."
        )
    n_starts = check_int("n_starts", n_starts, 1, math.inf, "One start is enough.")
    rng = np.random.default_rng(random_state)
    sizes = [n_classes, *[width] * (n_layers - 1), n_classes]
    spectra = []
    for _ in range(n_starts):
        weights = [
            scale / math.sqrt(fan_in) * rng.standard_normal((fan_out, fan_in))
            for fan_in, fan_out in itertools.pairwise(sizes)
        ]
        Z = _flow(weights, T, p)
        spectra.append(np.linalg.svd(Z - Z.mean(axis=0), compute_uv=False))
    rank = float(np.mean([np.count_nonzero(s > tol * s[0]) for s in spectra]))
    return RankPrediction(rank, np.array(spectra))


def _product(weights: list[FloatArray]) -> FloatArray:
    Z = weights[0]
    for W in weights[1:]:
        Z = W @ Z
    return Z


def _softmax(Z: FloatArray) -> FloatArray:
    # By columns; scipy's takes longer than all the products beside it.
    P = np.exp(Z - Z.max(axis=0))
    return P / P.sum(axis=0)


def _flow(
    weights: list[FloatArray], T: float, probability: float, rtol: float = 1e-4
) -> FloatArray:
    """Return the logits (class, input) where each class has reached the probability."""
    C, N = len(weights[-1]), len(weights)
    shapes = [W.shape for W in weights]
    cuts = np.cumsum([W.size for W in weights])[:-1]

    def matrices(y: FloatArray) -> list[FloatArray]:
        parts = zip(np.split(y, cuts), shapes, strict=True)
        return [part.reshape(shape) for part, shape in parts]

    def velocity(y: FloatArray) -> FloatArray:
        W = matrices(y)
        below = [np.eye(C)]
        for matrix in W:
            below.append(matrix @ below[-1])
        above = (np.eye(C) - _softmax(below.pop())) / C
        moves = []
        for matrix, product in zip(reversed(W), reversed(below), strict=True):
            moves.append((above @ product.T).ravel())
            above = matrix.T @ above
        return np.concatenate(moves[::-1])

    start = np.concatenate([W.ravel() for W in weights]) / T ** (1 / N)
    # A step that the solver tries, and takes back, may be far too long.
    with np.errstate(over="ignore", invalid="ignore"):
        for y in itertools.islice(_stiff_steps(velocity, start, rtol), MAX_STEPS):
            Z = _product(matrices(y))
            if np.diag(_softmax(Z)).min() >= probability:
                return T * Z
    raise RuntimeError(
        f"The flow of {N} layers and {C} classes at temperature={T:g} didn't reach "
        f"probability={probability:g} in {MAX_STEPS} steps. Raise init_scale, or lower "
        "the temperature or the probability."
    )


def _stiff_steps(
    velocity: Callable[[FloatArray], FloatArray], y: FloatArray, rtol: float
) -> Iterator[FloatArray]:
    """Yield the points of a gradient flow, by Runge-Kutta-Chebyshev steps.

    Large logits make it stiff while it waits beside a saddle. Steps of s stages of this
    explicit method are stable up to a length of 0.65 s^2 over the largest eigenvalue,
    where those of `scipy.integrate.RK45` end at 3.3, and implicit ones would need a
    Jacobian of all weights. Sommeijer, Shampine and Verwer (1998), "RKC", J. Comput.
    Appl. Math. 88(2), equations 2.1 to 2.8; second order.
    """
    v = F = velocity(y)

    def largest_eigenvalue(iterations: int) -> float:
        """Return a little more than it, by power iteration from the last `v`."""
        nonlocal v
        size, value = 1e-6 * float(np.linalg.norm(y)), 0.0
        for _ in range(iterations):
            v = (velocity(y + size / np.linalg.norm(v) * v) - F) / size
            last, value = value, float(np.linalg.norm(v))
            if abs(value - last) < 0.02 * value:
                break
        return 1.1 * value

    stiffness, age = largest_eigenvalue(30), 0
    h = 0.1 / stiffness
    while True:
        yield y
        accepted = False
        while not accepted:
            if age == 20:
                stiffness, age = largest_eigenvalue(5), 0
            stages = min(
                max(2, math.ceil((1 + h * stiffness / 0.653) ** 0.5)), MAX_STAGES
            )
            h = min(h, 0.653 * (stages**2 - 1) / stiffness)
            new = _chebyshev_step(velocity, y, F, h, stages)
            G = velocity(new)
            scale = 1e-8 + rtol * np.maximum(np.abs(y), np.abs(new))
            estimate = 0.8 * (y - new) + 0.4 * h * (F + G)
            error = float(np.sqrt(np.mean((estimate / scale) ** 2)))
            accepted = error <= 1.0
            if accepted:
                y, F = new, G
                age += 1
                h *= min(5.0, 0.8 / max(error, 1e-9) ** (1 / 3))
            else:
                h *= max(0.1, 0.8 / error ** (1 / 3)) if math.isfinite(error) else 0.1
                stiffness, age = largest_eigenvalue(10), 0


def _chebyshev_step(
    velocity: Callable[[FloatArray], FloatArray],
    y: FloatArray,
    F: FloatArray,
    h: float,
    stages: int,
) -> FloatArray:
    """Return the point a step of length h from y, where the velocity is F."""
    w0, w1, a, b = _chebyshev_coefficients(stages)
    before, now = y, y + b[1] * w1 * h * F
    for j in range(2, stages + 1):
        mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        slope = 2 * b[j] * w1 / b[j - 1] * h * (velocity(now) - a[j - 1] * F)
        before, now = now, (1 - mu - nu) * y + mu * now + nu * before + slope
    return now


@cache
def _chebyshev_coefficients(
    stages: int,
) -> tuple[float, float, FloatArray, FloatArray]:
    """Return w0, w1 and the arrays a and b of the method's paper."""
    w0 = 1 + 2 / 13 / stages**2
    # Chebyshev polynomials and their first two derivatives at w0.
    t, d, dd = (np.zeros(stages + 1) for _ in range(3))
    t[:2], d[1] = (1.0, w0), 1.0
    for j in range(2, stages + 1):
        t[j] = 2 * w0 * t[j - 1] - t[j - 2]
        d[j] = 2 * t[j - 1] + 2 * w0 * d[j - 1] - d[j - 2]
        dd[j] = 4 * d[j - 1] + 2 * w0 * dd[j - 1] - dd[j - 2]
    b = np.r_[0.0, 0.0, dd[2:] / d[2:] ** 2]
    b[:2] = b[2]
    return w0, d[-1] / dd[-1], 1 - b * t, b


def temperature_for_rank(
    rank: int,
    n_layers: int,
    n_classes: int,
    *,
    bounds: tuple[float, float] = (0.01, 1000.0),
    width: int | None = None,
    init_scale: float = 1.0,
    probability: float = 0.9,
    tol: float = 1e-2,
    n_starts: int = 3,
    random_state: int = 0,
) -> float:
    """Temperature at which a deep linear network is predicted to end with a rank.

    The inverse of `predict_rank`, which falls with the temperature, by bisection of its
    logarithm until the mean rank over the starts is within one half.

    Parameters
    ----------
    rank : int
        From 2 (1 for two classes) to ``n_classes - 1``. Rank asked for.
    n_layers : int
        Number of weight matrices, the head's included.
    n_classes : int
        At least 2. Number of classes.
    bounds : tuple of two floats, default=(0.01, 1000.0)
        Positive and ascending. Lowest and highest temperature.
    width : int, default=None
        As in `predict_rank`.
    init_scale : float, default=1.0
        As in `predict_rank`.
    probability : float, default=0.9
        As in `predict_rank`.
    tol : float, default=1e-2
        As in `predict_rank`.
    n_starts : int, default=3
        As in `predict_rank`.
    random_state : int, default=0
        As in `predict_rank`.

    Returns
    -------
    float
        Within `bounds`.

    Raises
    ------
    ValueError
        If a parameter is out of range, or if no temperature within `bounds` has the
        rank: the message names the nearest.
    RuntimeError
        If a flow takes too many steps.

    See Also
    --------
    predict_rank : The rank at a temperature, with the derivation.

    Examples
    --------
    >>> from sksoftrank.theory import predict_rank, temperature_for_rank
    >>> T = temperature_for_rank(4, 4, 10)
    >>> abs(predict_rank(T, 4, 10).rank - 4) <= 0.5
    True
    """
    n_classes = _check_classes(n_classes)
    rank = _check_rank(rank, n_classes)
    pair = np.shape(bounds) == (2,) and all(isinstance(b, Real) for b in bounds)
    if not pair or not 0 < bounds[0] < bounds[1] < math.inf:
        raise ValueError(
            "bounds must be two positive temperatures, the lower first, got "
            f"{bounds!r}. Use e.g. (0.01, 1000.0)."
        )
    tried: dict[float, float] = {}

    def excess(temperature: float) -> float:
        if temperature not in tried:
            tried[temperature] = predict_rank(
                temperature,
                n_layers,
                n_classes,
                width=width,
                init_scale=init_scale,
                probability=probability,
                tol=tol,
                n_starts=n_starts,
                random_state=random_state,
            ).rank
        return tried[temperature] - rank

    # From the middle outwards: high temperatures take by far the longest.
    low = high = min(max(1.0, bounds[0]), bounds[1])
    while excess(high) > 0.5 and high < bounds[1]:
        low, high = high, min(10 * high, bounds[1])
    while excess(low) < -0.5 and low > bounds[0]:
        low, high = max(low / 10, bounds[0]), low
    if excess(low) > 0 > excess(high):
        for _ in range(20):
            middle = math.sqrt(low * high)
            if abs(excess(middle)) <= 0.5:
                return middle
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    nearest = min(tried, key=lambda T: abs(tried[T] - rank))
    if abs(tried[nearest] - rank) <= 0.5:
        return nearest
    raise ValueError(
        f"rank must be one that {n_layers} layers reach at a temperature in {bounds}, "
        f"got {rank}: the nearest is {tried[nearest]:.3g}, at temperature "
        f"{nearest:.3g}. Ask for that, or change n_layers, init_scale or bounds."
    )


# -- What the softmax and the head can do ------------------------------------------


def softmax_rank_bound(logits: Any, temperature: float = 1.0) -> float:
    r"""Bound on how far a matrix of probabilities is from rank one.

    ``sum(s[1:] ** 2) <= k ** 2 * norm(Y) ** 2`` for the singular values s of
    ``P = softmax(Z / T)``, with Y = Z / T less the mean of each row,
    ``k = min(1 / 2, exp(2 b) / C)`` and ``b = max(abs(Y))``.

    Parameters
    ----------
    logits : array-like or Tensor of shape (n, C)
        One row a sample, before the division by the temperature.
    temperature : float, default=1.0
        Positive. Temperature T of the softmax.

    Returns
    -------
    float
        The right-hand side, non-negative; of a high temperature it is small, and the
        probabilities are of rank one but for that, whatever the rank of the logits.

    Raises
    ------
    ValueError
        If `logits` is not a finite matrix or `temperature` is not positive.

    Notes
    -----
    Rows of softmax(0) are all 1 / C, a matrix of rank one, so that by Eckart and Young
    ``sum(s[1:] ** 2) <= norm(P - 1 / C) ** 2``. Each row of P - 1 / C is the integral
    along ``t Y``, t from 0 to 1, of the Jacobian ``diag(p) - p p.T`` times the row of
    Y. That matrix's norm is at most ``max(p)``, since what is taken away is positive,
    and ``max(p) <= exp(b) / (C exp(-b))``; and at most ``max_i 2 p_i (1 - p_i) <= 1 /
    2``, by Gershgorin. The bound is tight for b up to about 1.

    References
    ----------
    Gao and Pavel (2017), "On the properties of the softmax function with application in
    game theory and reinforcement learning", arXiv:1704.00805 (Lipschitz constant).

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.theory import softmax_rank_bound
    >>> round(softmax_rank_bound(np.eye(4), temperature=10.0), 5)
    0.00253
    """
    Z = as_matrix("logits", logits)
    Y = Z / _check_positive("temperature", temperature)
    Y = Y - Y.mean(axis=1, keepdims=True)
    # Beyond that the half is smaller, and the exponential would overflow.
    k = min(0.5, math.exp(min(2 * np.abs(Y).max(), 700.0)) / Y.shape[1])
    return float(k**2 * (Y**2).sum())


def argmaxable(weight: Any, bias: Any = None) -> npt.NDArray[np.bool_]:
    r"""Which classes some embedding makes the prediction.

    Class i is argmaxable where some z has ``weight[i] @ z + bias[i]`` above that of all
    others.

    Parameters
    ----------
    weight : array-like or Tensor of shape (C, r)
        Weight of the head, one row a class.
    bias : array-like or Tensor of shape (C,), default=None
        Bias of the head; None for none.

    Returns
    -------
    ndarray of bool of shape (C,)
        False for classes that no embedding, of any size and sign, can make the only
        largest.

    Raises
    ------
    ValueError
        If `weight` is not a finite matrix or `bias` does not fit it.

    Notes
    -----
    A linear programme a class: ``max t`` with ``(w_i - w_j) z + b_i - b_j >= t`` for
    all j and ``t <= 1``; a lead of less than 1e-6 of the largest bias is taken for
    rounding. A class that leads far out along its own weight needs none, which settles
    most; of 1,000 classes each other one takes some 10 ms. Without bias the argmaxable
    classes are the corners of the convex hull of the rows of `weight`. C - 1 dimensions
    in general position reach every class; with fewer, some may be lost that training
    data hold.

    References
    ----------
    Grivas, Bogoychev and Lopez (2022), "Low-rank softmax can have unargmaxable classes
    in theory but rarely in practice", ACL, section 3; Demeter, Kimmel and Downey
    (2020), "Stolen probability", ACL.

    Examples
    --------
    >>> from sksoftrank.theory import argmaxable
    >>> argmaxable([[1.0], [0.0], [-1.0]])
    array([ True, False,  True])
    >>> argmaxable([[1.0], [0.0], [-1.0]], bias=[0.0, 0.5, 0.0])
    array([ True,  True,  True])
    """
    W = as_matrix("weight", weight)
    b = np.zeros(len(W)) if bias is None else as_numbers("bias", bias)
    if b.shape != (len(W),):
        raise ValueError(
            f"bias must hold one number for each of the {len(W)} rows of weight, got "
            f"shape {np.shape(bias)}. Pass the head's own."
        )
    return argmaxable_among(np.arange(len(W)), W, b)


def argmaxable_among(
    classes: npt.NDArray[np.intp], W: FloatArray, b: FloatArray
) -> npt.NDArray[np.bool_]:
    """Return which of some classes are argmaxable, those of the whole head beside."""
    if not len(classes):
        return np.zeros(0, dtype=bool)
    # The programme's tolerances are absolute; embeddings may have any scale.
    W, b = W - W.mean(axis=0), b - b.mean()
    W = W / (np.abs(W).max() or 1.0)
    b = b / (np.abs(b).max() or 1.0)
    free: list[tuple[float | None, float | None]] = [(None, None)] * W.shape[1]
    found = []
    for i in classes:
        others = np.arange(len(W)) != i
        lead, lag = W[others] - W[i], b[i] - b[others]
        # Far out along its own weight most classes win, without any programme.
        if (lead @ W[i] < -MARGIN).all():
            found.append(True)
            continue
        A = np.column_stack([lead, np.ones(len(lead))])
        c = np.zeros(A.shape[1])
        c[-1] = -1.0
        solved = linprog(c, A, lag, bounds=[*free, (None, 1.0)])
        # Always feasible, since t may be as low as need be, and bounded.
        found.append(solved.status == 0 and -solved.fun > MARGIN)
    return np.array(found)
