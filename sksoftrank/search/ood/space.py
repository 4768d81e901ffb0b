"""What a search draws from: Optuna's and scipy's distributions, lists, callables."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import joblib
import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial
from scipy import stats

from sksoftrank._digest import stable_repr
from sksoftrank._optuna import optimize_loop
from sksoftrank.estimators import (
    BaseSoftRankClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
)
from sksoftrank.estimators._recipe import MODERATE, Strength
from sksoftrank.losses import as_schedule
from sksoftrank.search._jobs import last_step, step_prefix

Params = dict[str, Any]
AnyTrial = Trial | FrozenTrial

# What the names of the baselines in a study's queue begin with.
BASELINE = "baseline"
# Learning rates that the baseline is tuned over, in units of its own. They span what
# the default space searches: else temperature would get the credit for a learning rate
# that the baseline was not allowed.
BASELINE_FACTORS = (1.0, 0.3, 0.1, 0.03)
_TEMPERATURES = (0.3, 100.0)
_RATE_FACTORS = (0.03, 1.0)
_WEIGHT_DECAYS = (1e-3, 0.3)
_DROPOUTS = (0.0, 0.5)
_SMOOTHINGS = (0.0, 0.2)
# Of an MLP. Normalisation moves the score under natural shifts furthest, up or down.
_NORMALIZATIONS = (None, "batch")
_N_HIDDEN_LAYERS = (2, 4)
# Of training, over the square root of the number of rows.
_STEPS = (6.7, 53.6)
_ATTENTION_TEMPERATURES = (0.3, 3.0)
# Ends of a distribution without ends, as quantiles.
_TAIL = 1e-6


@dataclass(frozen=True)
class Queued:
    """A trial that a study is to have, whatever its sampler would ask for.

    `point` is what the sampler is told that it was, and `params` what is evaluated;
    None for the point's own.
    """

    point: Params
    params: Params | None = None


@dataclass
class Space:
    """What a trial may be: `suggest` asks it for values and returns parameters.

    A finished trial gives the same parameters as when it ran. `description` says what
    the space is, so that a change is noticed.
    """

    suggest: Callable[[AnyTrial], Params]
    description: dict[str, str] = field(default_factory=dict)


def make_space(given: Any, estimator: Any, n_rows: int) -> Space:
    """Return the space that `param_distributions` stands for; None is the default.

    That has lengths of training on so many rows.
    """
    if given is None:
        return _default_space(estimator, n_rows)
    names = set(estimator.get_params())
    if callable(given):
        return _callable_space(given, names)
    if not given:
        raise ValueError(
            "param_distributions must name at least one parameter, got {}. Pass None "
            "for the default space."
        )
    _check_names(given, names, "param_distributions")
    dimensions = {name: _dimension(name, value) for name, value in given.items()}

    def suggest(trial: AnyTrial) -> Params:
        return {
            name: dimension.value(_ask(trial, name, dimension.distribution))
            for name, dimension in dimensions.items()
        }

    description = {name: dimension.text for name, dimension in dimensions.items()}
    return Space(suggest, description)


def _ask(trial: AnyTrial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    suggest: Any = trial.suggest_float
    if isinstance(distribution, IntDistribution):
        suggest = trial.suggest_int
    # A logarithmic one of whole numbers has a step of 1, which it may not be given.
    step = {} if distribution.log else {"step": distribution.step}
    return suggest(name, low, high, log=distribution.log, **step)


def _check_names(params: Mapping[str, Any], names: set[str], source: str) -> None:
    for name in params:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=3)
            fix = f"Did you mean {' or '.join(close)}?" if close else "Remove it."
            raise ValueError(
                f"{source} must name parameters of the estimator, got {name!r}. {fix}"
            )


@dataclass
class _Dimension:
    """A distribution of Optuna's, and what its values stand for."""

    distribution: BaseDistribution
    value: Callable[[Any], Any]
    text: str


def _dimension(name: str, given: Any) -> _Dimension:
    if isinstance(given, BaseDistribution):
        return _Dimension(given, _same, repr(given))
    if isinstance(
        getattr(given, "dist", None), stats.rv_continuous | stats.rv_discrete
    ):
        return _scipy_dimension(name, given)
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if not given:
            raise ValueError(
                f"param_distributions[{name!r}] must hold at least one value, got "
                f"{given!r}. Add values or remove the parameter."
            )
        return _list_dimension(given)
    raise TypeError(
        f"param_distributions[{name!r}] must be a distribution of Optuna or of "
        f"scipy.stats or a list of values, got {given!r}. Use [{given!r}] for a "
        "single value."
    )


def _list_dimension(values: Sequence[Any]) -> _Dimension:
    values = [v.item() if isinstance(v, np.generic) else v for v in values]
    text = stable_repr(values)
    if all(isinstance(v, bool | int | float | str | None) for v in values):
        return _Dimension(CategoricalDistribution(values), _same, text)
    # Optuna stores nothing else: labels stand for the values.
    by_label: dict[str, Any] = {}
    for place, value in enumerate(values):
        label = stable_repr(value)
        by_label[f"{label} #{place}" if label in by_label else label] = value
    return _Dimension(
        CategoricalDistribution(list(by_label)), by_label.__getitem__, text
    )


def _scipy_dimension(name: str, given: Any) -> _Dimension:
    low, high = given.support()
    text = f"{given.dist.name}{given.args}{sorted(given.kwds.items())}"
    if isinstance(given.dist, stats.rv_discrete):
        if given.dist.name == "randint":
            return _Dimension(IntDistribution(int(low), int(high)), _same, text)
        return _quantiles(given, int, text)
    ends = math.isfinite(low) and math.isfinite(high)
    if ends and given.dist.name in ("loguniform", "reciprocal") and low > 0:
        distribution = FloatDistribution(float(low), float(high), log=True)
        return _Dimension(distribution, _same, text)
    if ends and given.dist.name == "uniform":
        return _Dimension(FloatDistribution(float(low), float(high)), _same, text)
    return _quantiles(given, float, text)


def _quantiles(given: Any, kind: type, text: str) -> _Dimension:
    """Return a dimension of quantiles, which any distribution has."""
    distribution = FloatDistribution(_TAIL, 1 - _TAIL)
    return _Dimension(distribution, lambda q: kind(given.ppf(q)), text)


def _same(value: Any) -> Any:
    return value


def _callable_space(given: Callable[[Any], Any], names: set[str]) -> Space:
    name = getattr(given, "__qualname__", type(given).__qualname__)

    def suggest(trial: AnyTrial) -> Params:
        params = given(trial)
        if not isinstance(params, dict):
            raise TypeError(
                f"param_distributions must return a dict of parameters, {name} "
                f"returned {params!r}. Return the values that the trial suggested, by "
                "name."
            )
        _check_names(params, names, f"What param_distributions ({name}) returns")
        return params

    try:
        text = inspect.getsource(given)
    except (OSError, TypeError):  # E.g. typed into a prompt, or no function.
        text = ""
    return Space(suggest, {"callable": f"{name} {joblib.hash(text)[:16]}"})


# -- Defaults ------------------------------------------------------------------------


@dataclass
class _Network:
    """Where an estimator's network has its parameters.

    `settings` must be set for them to be there: an ensemble's members have none yet.
    """

    prefix: str
    classifier: BaseSoftRankClassifier
    settings: Params = field(default_factory=dict)

    @property
    def plain_params(self) -> Params:
        """What makes every fit a single one."""
        is_auto = self.classifier.get_params().get("dropout") == "auto"
        return {f"{self.prefix}dropout": MODERATE.dropout} if is_auto else {}

    def auto_rate(self, temperature: float) -> float:
        """Return the learning rate that "auto" stands for at a temperature."""
        rates = self.classifier._architecture().base_rates
        base, power = rates[self.classifier.optimizer]
        return base * temperature**power


def _network(estimator: Any) -> _Network | None:
    """Return the network whose learning rate is tuned; None if there is none."""
    last, prefix = last_step(estimator), step_prefix(estimator)
    if isinstance(last, BaseSoftRankClassifier):
        return _Network(prefix, last)
    if isinstance(last, SoftRankEnsembleClassifier):
        if last.estimator is not None:
            return _Network(f"{prefix}estimator__", last.estimator)
        default = SoftRankMLPClassifier()
        return _Network(
            f"{prefix}estimator__", default, {f"{prefix}estimator": default}
        )
    return None


def _default_space(estimator: Any, n_rows: int) -> Space:
    network, prefix = _network(estimator), step_prefix(estimator)
    kind = type(last_step(estimator)).__name__
    if network is None:
        raise ValueError(
            "param_distributions must be given for an estimator that does not end in "
            f"one of sksoftrank's, got None for {kind}. Pass a dict of parameters and "
            "distributions."
        )
    classifier = network.classifier
    own = classifier.get_params()

    def suggest(trial: AnyTrial) -> Params:
        temperature = trial.suggest_float("temperature", *_TEMPERATURES, log=True)
        # Of the rate that "auto" stands for: what is searched is not confounded.
        factor = trial.suggest_float("learning_rate_factor", *_RATE_FACTORS, log=True)
        params: Params = {
            "learning_rate": factor * network.auto_rate(temperature),
            "weight_decay": trial.suggest_float(
                "weight_decay", *_WEIGHT_DECAYS, log=True
            ),
            "label_smoothing": trial.suggest_float("label_smoothing", *_SMOOTHINGS),
        }
        if "dropout" in own:
            params["dropout"] = trial.suggest_float("dropout", *_DROPOUTS)
        if own["max_epochs"] == "auto":
            steps = trial.suggest_float("steps", *_STEPS, log=True)
            params["max_epochs"] = classifier._lengths(n_rows, Strength(steps, 0.0))[0]
        if isinstance(classifier, SoftRankMLPClassifier):
            # A batch of one row has no variance.
            kinds = _NORMALIZATIONS[: 1 if classifier.batch_size == 1 else None]
            params["normalization"] = trial.suggest_categorical("normalization", kinds)
            n_layers = trial.suggest_int("n_hidden_layers", *_N_HIDDEN_LAYERS)
            params["hidden_layer_sizes"] = classifier._widths()[-1:] * n_layers
        if "attention_temperature" in own:
            params["attention_temperature"] = trial.suggest_float(
                "attention_temperature", *_ATTENTION_TEMPERATURES, log=True
            )
        return {
            **network.settings,
            f"{prefix}temperature": temperature,
            **{f"{network.prefix}{name}": value for name, value in params.items()},
        }

    ranges = (
        f"{_TEMPERATURES} {_RATE_FACTORS} {_WEIGHT_DECAYS} {_SMOOTHINGS} {_DROPOUTS} "
        f"{_STEPS} {_NORMALIZATIONS} {_N_HIDDEN_LAYERS} {_ATTENTION_TEMPERATURES}"
    )
    return Space(suggest, {"default": f"{kind} {ranges}"})


def default_queue(given: Any, estimator: Any, space: Space) -> dict[str, Queued]:
    """Return what a study begins with, by name: the baselines, and two recipes.

    The baseline is the estimator at temperature 1, at several learning rates of which
    the best in distribution counts; as it is where its learning rate is fixed, or where
    it has no temperature. In the default space the recipes follow: the estimator's own,
    and a robust one without normalisation and smoothing, and with little dropout.
    """
    network, prefix = _network(estimator), step_prefix(estimator)
    baselines: list[Params] = [{}]
    if network is not None:
        baselines = [{**network.settings, **network.plain_params}]
        if network.classifier.learning_rate == "auto":
            rate = network.auto_rate(1.0)
            baselines = [
                {
                    **baselines[0],
                    f"{prefix}temperature": 1.0,
                    f"{network.prefix}learning_rate": factor * rate,
                }
                for factor in BASELINE_FACTORS
            ]
    queue = {}
    for k, params in enumerate(baselines):
        wanted = _wanted(estimator, params)
        queue[f"{BASELINE} {k}"] = Queued(nearest_params(space, wanted), params)
    if given is None:
        own = _wanted(estimator, {})
        robust = {"normalization": None, "label_smoothing": 0.0, "dropout": 0.15}
        for k, wanted in enumerate([own, {**own, **robust}]):
            queue[f"recipe {k}"] = Queued(nearest_params(space, wanted))
    return queue


def nearest_params(space: Space, wanted: Params) -> Params:
    """Return the point of a space that is next to wanted values.

    The baseline need not lie within the space (its weight decay is zero, say), but the
    sampler should learn from it, and a space of another trial's names would make it
    forget how parameters go together.
    """
    params: Params = {}
    for _ in range(20):
        # What there is may depend on values, such as those that come next to these.
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(params)
        with optimize_loop(study):
            trial = study.ask()
            with suppress(optuna.TrialPruned):
                space.suggest(trial)
        found = {
            name: _nearest(distribution, wanted.get(name))
            for name, distribution in trial.distributions.items()
        }
        if found == params:
            break
        params = found
    return params


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value of a distribution that is next to another, or any."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        for same in (value, stable_repr(value)):
            if same in choices:
                return same
        numbers = [c for c in choices if isinstance(c, int | float)]
        if is_number and numbers:
            return min(numbers, key=lambda choice: abs(choice - value))
        return choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    value = value if is_number else distribution.low
    value = min(max(value, distribution.low), distribution.high)
    if distribution.step is not None and not distribution.log:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def _wanted(estimator: Any, params: Params) -> Params:
    """Return what an estimator with `params` is, by all names a space may have."""
    network, prefix = _network(estimator), step_prefix(estimator)
    plain = {} if network is None else network.plain_params
    values = {**estimator.get_params(), **plain, **params}
    values = {k: v for k, v in values.items() if not hasattr(v, "get_params")}
    if network is None:
        return values
    # The names of the default space.
    own = network.classifier.get_params()
    own = {k: values.get(f"{network.prefix}{k}", v) for k, v in own.items()}
    temperature = values[f"{prefix}temperature"]
    if temperature is None:  # An ensemble's, whose members have theirs.
        temperature = own["temperature"]
    temperature = as_schedule(temperature)(1.0)
    rate = own["learning_rate"]
    auto_rate = network.auto_rate(temperature)
    factor = 1.0 if rate == "auto" else rate / auto_rate
    return {
        **own,
        "temperature": temperature,
        "learning_rate_factor": factor,
        "n_hidden_layers": np.size(own.get("hidden_layer_sizes", ())),
        "steps": MODERATE.steps,
        **values,
    }
