"""The hyperparameters that classifiers share, and how subclasses hand them on."""

import inspect
import pickle

import numpy as np
import pytest
from numpydoc.docscrape import get_doc_object
from sklearn.base import clone

from sksoftrank import (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.estimators._parameters import PARAMETERS
from sksoftrank.modules import MLP

# Of the package's own networks.
RECIPE = {
    "optimizer": "adamw",
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "max_epochs": "auto",
    "batch_size": "auto",
}
CLASSES = {
    SoftRankMLPClassifier: {"temperature": 10.0, **RECIPE},
    SoftRankCNNClassifier: {**RECIPE, "max_epochs": 35, "batch_size": 64},
    SoftRankTransformerClassifier: {**RECIPE, "lr_schedule": "warmup_cosine"},
    SoftRankClassifier: {},
}
each = pytest.mark.parametrize(("cls", "changed"), CLASSES.items())


class Plain(SoftRankMLPClassifier):
    pass


class Handing(SoftRankMLPClassifier):
    """One with a parameter of its own, and another default.

    Parameters
    ----------
    extra : int, default=1
        Its own.
    %(parameters)s
    """

    def __init__(self, extra=1, *, max_epochs=7, **others):
        super().__init__(max_epochs=max_epochs, **others)
        self.extra = extra


class Further(Handing):
    def __init__(self, *, tol=0.5, **others):
        super().__init__(tol=tol, **others)


class Explicit(SoftRankMLPClassifier):
    def __init__(self, temperature=5.0, random_state=None):
        super().__init__((4,), temperature=temperature, random_state=random_state)


@each
def test_a_signature_lists_its_own_parameters_then_the_shared_ones(cls, changed):
    signature = inspect.signature(cls)
    _, *bound = inspect.signature(cls.__init__).parameters.values()
    assert list(signature.parameters.values()) == bound
    names = list(signature.parameters)
    assert names[-len(PARAMETERS) :] == list(PARAMETERS)
    expected = {name: parameter.default for name, parameter in PARAMETERS.items()}
    for name, default in {**expected, **changed}.items():
        assert signature.parameters[name].default == default
        assert signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert all(p.kind is not p.VAR_KEYWORD for p in bound)


@each
def test_every_parameter_is_set_checked_and_reset(cls, changed):
    required = {"module": MLP} if cls is SoftRankClassifier else {}
    made = cls(**required)
    params = made.get_params()
    assert set(params) == set(inspect.signature(cls).parameters)
    assert set(params) == set(cls._parameter_constraints)
    for name, parameter in PARAMETERS.items():
        assert params[name] == changed.get(name, parameter.default)
    made._validate_params()
    changes = {"temperature": 3.0, "tol": 0.25}
    other = clone(made.set_params(**changes))
    assert other.get_params() == {**params, **changes}
    assert "temperature=3.0" in repr(other)
    assert "max_epochs" not in repr(other)


@pytest.mark.parametrize("cls", [SoftRankCNNClassifier, Plain, Handing, Further])
def test_an_unknown_keyword_is_a_type_error(cls):
    message = rf"{cls.__name__}.__init__\(\) got an unexpected keyword argument 'heat'"
    with pytest.raises(TypeError, match=message):
        cls(heat=3.0)


@pytest.mark.parametrize(
    ("cls", "defaults"),
    [
        (Plain, {"max_epochs": "auto", "hidden_layer_sizes": (256, 256, 256)}),
        (Handing, {"max_epochs": 7, "extra": 1, "hidden_layer_sizes": (256, 256, 256)}),
        (Further, {"max_epochs": 7, "extra": 1, "tol": 0.5, "batch_size": "auto"}),
        (Explicit, {"temperature": 5.0, "random_state": None}),
    ],
)
def test_subclasses_are_estimators(cls, defaults):
    made = cls()
    for name, value in defaults.items():
        assert made.get_params()[name] == value
        assert inspect.signature(cls).parameters[name].default == value
    made = clone(made).set_params(temperature=2.0, random_state=0)
    assert made.get_params()["temperature"] == clone(made).temperature == 2.0
    X, y = np.random.default_rng(0).standard_normal((20, 3)), np.tile([0, 1], 10)
    made = pickle.loads(pickle.dumps(made.fit(X, y)))
    assert made.predict(X).shape == (20,)
    if cls is Explicit:
        assert set(made.get_params()) == set(defaults)


def test_documentation_has_the_defaults_of_the_class():
    documented = {p.name: p.type for p in get_doc_object(Handing)["Parameters"]}
    assert list(documented)[:2] == ["extra", "temperature"]
    assert set(documented) == {"extra", *PARAMETERS}
    assert documented["max_epochs"] == 'int or "auto", default=7'
    assert documented["batch_size"] == 'int or "auto", default="auto"'
