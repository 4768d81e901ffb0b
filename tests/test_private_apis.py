"""Private names of other libraries are as we use them, and each stands in one file.

This file imports nothing that leans on them: where one is gone, the test that says so
must still run.
"""

import ast
import importlib
import inspect
import re
import sys
from contextlib import suppress
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sksoftrank"
LIBRARIES = ("joblib", "optuna", "skorch", "sklearn", "torch")
FILES = {name: PACKAGE / f"_{name}.py" for name in LIBRARIES}
_ADAM = "lr beta1 beta2 weight_decay eps amsgrad maximize"

_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
_EMPTY = inspect.Parameter.empty

# How many arguments each is called with by position, and which by keyword; None of what
# is no more than looked at.
CALLS = {
    "sklearn.base._fit_context": (0, "prefer_skip_nested_validation"),
    "sklearn.base.BaseEstimator._validate_params": (1, ""),
    "sklearn.linear_model._base.LinearClassifierMixin": None,
    "sklearn.metrics._scorer._BaseScorer": None,
    "sklearn.metrics._scorer._MultimetricScorer": None,
    "sklearn.model_selection._search.BaseSearchCV": (
        1,
        "scoring n_jobs refit cv verbose error_score",
    ),
    "sklearn.model_selection._search.BaseSearchCV._check_refit_for_multimetric": (
        2,
        "",
    ),
    "sklearn.model_selection._search.BaseSearchCV._format_results": (5, ""),
    "sklearn.model_selection._search.BaseSearchCV._get_routed_params_for_fit": (2, ""),
    "sklearn.model_selection._search.BaseSearchCV._get_scorers": (1, ""),
    "sklearn.model_selection._search.BaseSearchCV._init_callback_context": (
        1,
        "max_subtasks",
    ),
    "sklearn.model_selection._search.BaseSearchCV._select_best_index": (3, ""),
    "sklearn.model_selection._search._yield_masked_array_for_each_param": (1, ""),
    "sklearn.model_selection._validation._fit_and_score": (
        3,
        "scorer train test verbose parameters fit_params score_params "
        "return_train_score return_n_test_samples return_times split_progress "
        "candidate_progress error_score",
    ),
    "sklearn.model_selection._validation._insert_error_scores": (2, ""),
    "sklearn.model_selection._validation._warn_or_raise_about_fit_failures": (2, ""),
    "sklearn.utils._missing.is_scalar_nan": (1, ""),
    "sklearn.utils._param_validation.HasMethods": (1, ""),
    "sklearn.utils._param_validation.Interval": (3, "closed"),
    "sklearn.utils._param_validation.StrOptions": (1, ""),
    "sklearn.utils._param_validation.validate_parameter_constraints": (
        2,
        "caller_name",
    ),
    "sklearn.utils.metaestimators._safe_split": (4, ""),
    "sklearn.utils.multiclass._check_partial_fit_first_call": (2, ""),
    "sklearn.utils.validation._check_method_params": (1, "params indices"),
    "sklearn.utils.validation._check_sample_weight": (
        2,
        "dtype ensure_non_negative",
    ),
    "sklearn.utils.validation._num_features": (1, ""),
    "sklearn.utils.validation._num_samples": (1, ""),
    "skorch.NeuralNet._get_predict_nonlinearity": (1, ""),
    "skorch.NeuralNet._initialize_optimizer": (1, ""),
    "torch.nn.modules.batchnorm._BatchNorm": None,
    "torch.ops.aten.gelu.out": (1, "out"),
    "torch.ops.aten.gelu_backward.grad_input": (2, "grad_input"),
    "torch.ops.aten.native_batch_norm.out": (8, "out save_mean save_invstd"),
    "torch.ops.aten.native_batch_norm_backward.out": (10, "out0 out1 out2"),
    "torch.ops.aten.native_layer_norm.out": (5, "out0 out1 out2"),
    "torch.ops.aten.native_layer_norm_backward.out": (8, "out0 out1 out2"),
    "torch.ops.aten.silu.out": (1, "out"),
    "torch.ops.aten.silu_backward.grad_input": (2, "grad_input"),
    "torch.ops.aten.tanh_backward.grad_input": (2, "grad_input"),
    "torch.ops.aten.threshold_backward.grad_input": (3, "grad_input"),
}
# torch's bindings have no signature; the operator behind them has.
BINDINGS = {
    "_log_softmax_backward_data": ("out", 4, "out"),
    "_fused_adam_": ("default", 6, _ADAM),
    "_fused_adamw_": ("default", 6, _ADAM),
    "_fused_sgd_": (
        "default",
        3,
        "lr weight_decay is_first_step momentum nesterov maximize dampening",
    ),
}
CALLS |= {
    f"torch.ops.aten.{name}.{overload}": (n, keywords)
    for name, (overload, n, keywords) in BINDINGS.items()
}


def gone(name, what):
    """End a test with the name that broke, and where it is used."""
    library = name.split(".")[0]
    package = {"sklearn": "scikit-learn"}.get(library, library)
    pytest.fail(
        f"{package} {version(package)}: {name} {what}. Mend sksoftrank/_{library}.py."
    )


def find(name):
    """Return what a dotted name stands for."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        with suppress(ImportError):
            module = importlib.import_module(".".join(parts[:n]))
            try:
                return reduce(getattr, parts[n:], module)
            except AttributeError:
                break
    return gone(name, "is gone")


def signature_of(call):
    """Return the signature of a function, class or torch operator."""
    if not hasattr(call, "_schema"):
        return inspect.signature(call)
    return inspect.Signature(
        [
            inspect.Parameter(
                own.name,
                _KEYWORD_ONLY if own.kwarg_only else _POSITIONAL_OR_KEYWORD,
                default=own.default_value if own.has_default_value() else _EMPTY,
            )
            for own in call._schema.arguments
        ]
    )


@pytest.mark.parametrize("name", CALLS)
def test_it_is_there_and_takes_what_we_pass(name):
    found = find(name)
    if CALLS[name] is None:
        return
    n_positional, keywords = CALLS[name]
    signature = signature_of(found)
    try:
        signature.bind(*range(n_positional), **dict.fromkeys(keywords.split()))
    except TypeError as error:
        gone(name, f"is called otherwise, as {signature}: {error}")


@pytest.mark.parametrize("name", BINDINGS)
def test_the_binding_of_a_kernel_is_there(name):
    assert callable(find(f"torch.{name}"))


# -- What only an instance has ---------------------------------------------------------


def scorer():
    from sklearn.metrics import get_scorer

    return get_scorer("accuracy")


def scorers():
    return search()._get_scorers()[0]


def search():
    from sklearn.callback import ScoringMonitor
    from sklearn.dummy import DummyClassifier
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(
        DummyClassifier(), {}, scoring=["accuracy", "f1"], refit=False
    )
    return search.set_callbacks(ScoringMonitor(scoring="accuracy"))


def module():
    from torch import nn

    return nn.Linear(1, 1)


def optimizer():
    import torch

    return torch.optim.SGD(module().parameters())


def compiled():
    import torch

    return torch.compile(module(), backend="eager")


def net():
    from skorch import NeuralNet
    from torch import nn

    return NeuralNet(nn.Linear, nn.MSELoss)


def study():
    import optuna

    return optuna.create_study()


def reusable_executor():
    from joblib.externals.loky import reusable_executor

    return reusable_executor


def neighbors():
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors().fit([[0.0]])


def asking():
    from sklearn import config_context
    from sklearn.linear_model import LinearRegression

    with config_context(enable_metadata_routing=True):
        return LinearRegression().set_fit_request(sample_weight=True)


ATTRIBUTES = [
    ("joblib", reusable_executor, "_executor"),
    ("optuna", study, "_stop_flag _thread_local"),
    ("skorch", net, "_optimizers"),
    ("sklearn", scorer, "_kwargs _response_method _score_func"),
    ("sklearn", scorers, "_scorers"),
    ("sklearn", search, "_skl_callbacks"),
    ("sklearn", neighbors, "_fit_X"),
    ("sklearn", asking, "_metadata_request"),
    (
        "torch",
        module,
        "_backward_hooks _backward_pre_hooks _forward_hooks _forward_pre_hooks",
    ),
    ("torch", compiled, "_orig_mod"),
    (
        "torch",
        optimizer,
        "_optimizer_step_pre_hooks _optimizer_step_post_hooks",
    ),
]


@pytest.mark.parametrize(("library", "make", "names"), ATTRIBUTES)
def test_an_instance_has_it(library, make, names):
    owner = make()
    for name in names.split():
        if not hasattr(owner, name):
            kind = getattr(owner, "__name__", type(owner).__name__)
            gone(f"{library}.{kind}.{name}", "is gone")


def test_optuna_takes_our_loop_for_its_own():
    from sksoftrank._optuna import optimize_loop, stop_requested

    own = study()
    with optimize_loop(own):
        assert not stop_requested(own)
        own.stop()  # Raises where the loop is not taken for one.
        assert stop_requested(own)
    with pytest.raises(RuntimeError):
        own.stop()


@pytest.mark.parametrize(
    "kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"]
)
def test_hooks_are_seen(kind):
    from sksoftrank._torch import has_hooks

    layer = module()
    assert not has_hooks(layer)
    handle = getattr(layer, f"register_{kind}_hook")(print)
    assert has_hooks(layer)
    handle.remove()
    assert not has_hooks(layer)


def test_hooks_of_parameters_and_of_steps_are_seen():
    from sksoftrank._torch import has_hooks, has_step_hooks

    layer = module()
    handle = next(layer.parameters()).register_hook(print)
    assert has_hooks(layer)
    handle.remove()
    assert not has_hooks(layer)
    for when in ("pre", "post"):
        descent = optimizer()
        assert not has_step_hooks(descent)
        getattr(descent, f"register_step_{when}_hook")(print)
        assert has_step_hooks(descent)


# -- Nothing else leans on them --------------------------------------------------------


def parts_of(path):
    return list(ast.walk(ast.parse(path.read_text())))


def names_of_our_own():
    """Return the names with an underscore that the package itself gives."""
    own = set()
    for path in PACKAGE.rglob("*.py"):
        for node in parts_of(path) if path not in FILES.values() else ():
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return own


def is_private(name):
    return any(re.match("_(?!_)", part) for part in name.split("."))


def is_listed(module, name):
    """Return whether a public module has a name in its `__all__`."""
    return not is_private(module) and name in getattr(
        importlib.import_module(module), "__all__", ()
    )


def uses(nodes, own):
    """Yield the private names of other libraries."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (n for n in names if is_private(n) and "sksoftrank" not in n)
        elif isinstance(node, ast.ImportFrom):
            library = node.module.split(".")[0]
            if library == "sksoftrank" or library in sys.stdlib_module_names:
                continue
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if is_private(name) and not is_listed(node.module, alias.name):
                    yield name
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_theirs = node.attr not in own or owner.split(".")[0] in LIBRARIES
            if owner in ("_aten", "torch.ops") or (is_private(node.attr) and is_theirs):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "getattr",
            "hasattr",
        ):
            name = getattr(node.args[1], "value", "")
            if is_private(str(name)) and name not in own:
                yield name


def test_each_stands_in_the_file_of_its_library():
    own = names_of_our_own()
    found = {
        str(path.relative_to(PACKAGE)): list(uses(parts_of(path), own))
        for path in PACKAGE.rglob("*.py")
        if path not in FILES.values()
    }
    found = {path: names for path, names in found.items() if names}
    assert not found, (
        f"{found}: use a public way, or put them into the file of their library, such "
        "as sksoftrank/_sklearn.py, and into the tests here."
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_all_of_them_are_tested(library):
    tested = {part for name in CALLS for part in name.split(".")} | set(BINDINGS)
    tested |= {name for *_, names in ATTRIBUTES for name in names.split()}
    used = {name.split(".")[-1] for name in uses(parts_of(FILES[library]), set())}
    assert used - tested - {"aten"} == set()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("from torch._dynamo import reset", "torch._dynamo.reset"),
        ("from sklearn.base import _fit_context", "sklearn.base._fit_context"),
        ("torch._foreach_add_(a, b)", "torch._foreach_add_"),
        ("torch._log_softmax(a, 1, False)", "torch._log_softmax"),
        ("torch.ops.aten.add.out(a, b)", "torch.ops.aten"),
        ("study._storage.remove()", "study._storage"),
        ("getattr(study, '_storage', None)", "_storage"),
    ],
)
def test_a_new_one_is_seen(code, name):
    # Whatever we call so ourselves.
    assert list(uses(ast.walk(ast.parse(code)), {"_log_softmax"})) == [name]


def test_what_is_documented_or_our_own_is_none():
    code = "from sklearn.utils import _safe_indexing; self._net = net.__dict__"
    assert not list(uses(ast.walk(ast.parse(code)), {"_net"}))
