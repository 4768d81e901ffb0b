"""Fitted estimators as ONNX graphs, for runtimes without Python."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from sklearn.base import BaseEstimator, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sksoftrank.estimators import SoftRankEnsembleClassifier
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.modules._layers import torch_defaults

__all__ = ["to_onnx"]

OUTPUTS = ("proba", "label", "embedding")
# What torch's exporter and skl2onnx both write.
OPSET = {"": 20, "ai.onnx.ml": 3}
IR_VERSION = 10


def to_onnx(estimator: BaseEstimator, output: str = "proba") -> Any:
    """Return an ONNX model that computes what an estimator predicts.

    Parameters
    ----------
    estimator : estimator
        Fitted: one of the package's classifiers, an ensemble, or a pipeline with such,
        last or in the middle, and scikit-learn's own steps for numbers.
    output : {"proba", "label", "embedding"}, default="proba"
        What the model returns: `predict_proba`, `predict`, or `transform`.

    Returns
    -------
    onnx.ModelProto
        With the input "X", of single precision and shape (rows, n_features), images
        flattened, and one output, named like `output`. Numbers are within 1e-5 of ours.

    Raises
    ------
    ValueError
        If `output` is none of these, or the estimator is not of this kind: it takes
        columns of categories, say.
    ImportError
        Without the extra "onnx".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier, to_onnx
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(16, max_epochs=2, random_state=0).fit(X, y)
    >>> model = to_onnx(clf, output="label")
    >>> [value.name for value in model.graph.input]
    ['X']
    >>> [value.name for value in model.graph.output]
    ['label']
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}. Pick one.")
    check_is_fitted(estimator)
    compose = _import("onnx.compose")
    steps = list(_steps(estimator))
    if not any(map(_is_ours, steps)):
        raise ValueError(
            "estimator must be one of this package's classifiers, or a pipeline with "
            f"one, got {type(estimator).__name__}. Use skl2onnx for others."
        )
    model: Any = None
    for place, step in enumerate(steps):
        is_last = place == len(steps) - 1
        make = _convert_ours if _is_ours(step) else _convert_step
        part = make(step, output if is_last else "embedding")
        part = compose.add_prefix(part, f"{place}_", rename_edges=True)
        if model is not None:
            inner = [(model.graph.output[0].name, part.graph.input[0].name)]
            part = _as_written_for(compose.merge_models(model, part, io_map=inner))
        model = part
    _rename(model, model.graph.input[0].name, "X")
    _rename(model, model.graph.output[0].name, output)
    model.producer_name = "sksoftrank"
    _import("onnx.checker").check_model(model, full_check=True)
    return model


def _steps(estimator: Any) -> Iterator[Any]:
    """Yield what rows go through, one after the other."""
    if isinstance(estimator, FrozenEstimator):
        yield from _steps(estimator.estimator)
    elif isinstance(estimator, Pipeline):
        for _, step in estimator.steps:
            yield from _steps(step)
    elif estimator is not None and not isinstance(estimator, str):  # "passthrough"
        yield estimator


def _is_ours(step: Any) -> bool:
    return isinstance(step, BaseSoftRankClassifier | SoftRankEnsembleClassifier)


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs {name.split('.')[0]}: pip install 'sksoftrank[onnx]'."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters' notes on their own parts from whoever exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Network(nn.Module):
    """What an estimator or an ensemble computes, as one module."""

    def __init__(self, estimator: Any, output: str) -> None:
        super().__init__()
        members = getattr(estimator, "estimators_", [estimator])
        self.members = nn.ModuleList(
            copy.deepcopy(member.module_).cpu() for member in members
        )
        self.temperatures = [float(member.temperature_) for member in members]
        self.output = output
        compressor = estimator.compressor_
        self.is_whole = getattr(estimator, "embedding", "") == "concatenated"
        basis = torch.tensor(compressor.components_.T, dtype=torch.float64)
        mean = torch.tensor(compressor.mean_, dtype=torch.float64)
        self.register_buffer("basis", basis.float())
        self.register_buffer("offset", (-mean @ basis).float())

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities, codes of classes, or the embedding of rows."""
        members: Any = self.members
        if self.output == "embedding":
            z = torch.cat([member.embed(x) for member in members], dim=1)
            basis: Any = self.basis
            return z if self.is_whole else z @ basis + self.offset
        scores = [m(x) / t for m, t in zip(members, self.temperatures, strict=True)]
        if len(scores) == 1 and self.output == "label":
            return scores[0].argmax(dim=1)
        proba = torch.stack([torch.softmax(s, dim=1) for s in scores]).mean(dim=0)
        return proba if self.output == "proba" else proba.argmax(dim=1)


def _convert_ours(estimator: Any, output: str) -> Any:
    """Return the model of one of the package's classifiers."""
    if estimator._input.encoder is not None:
        raise ValueError(
            "estimator must take numbers alone, got one with columns of categories. "
            "Encode them in a step before, and fit again."
        )
    _import("onnxscript")
    network = _Network(estimator, output).eval()
    # Two rows: of one, the exporter would think that there is never another.
    example = torch.zeros(2, estimator.n_features_in_)
    with _quiet(), torch_defaults(), torch.no_grad():
        program: Any = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "rows"},),
            opset_version=OPSET[""],
            verbose=False,
        )
    model = _as_written_for(program.model_proto)
    if output == "label":
        _look_up(model, estimator.classes_)
    return model


def _look_up(model: Any, classes: Any) -> None:
    """Turn codes, a model's output, into labels."""
    helper, onnx = _import("onnx.helper"), _import("onnx")
    kinds = {"b": onnx.TensorProto.BOOL, "i": onnx.TensorProto.INT64}
    kinds |= {"u": kinds["i"], "f": onnx.TensorProto.DOUBLE}
    kinds |= {"U": onnx.TensorProto.STRING, "O": onnx.TensorProto.STRING}
    kind, labels = classes.dtype.kind, classes.tolist()
    if kind not in kinds or (kind == "O" and not all(map(_is_text, labels))):
        raise ValueError(
            "output='label' needs classes that are numbers or text, got "
            f"{labels}. Use 'proba', whose columns are in their order."
        )
    if kinds[kind] == onnx.TensorProto.STRING:
        labels = [label.encode() for label in labels]
    table = helper.make_tensor("classes", kinds[kind], [len(labels)], labels)
    model.graph.initializer.append(table)
    codes = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Gather", ["classes", codes], ["labels"]))
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("labels", kinds[kind], ["rows"])
    )


def _is_text(label: Any) -> bool:
    return isinstance(label, str)


def _convert_step(step: Any, output: str) -> Any:
    """Return the model of one of scikit-learn's estimators."""
    skl2onnx = _import("skl2onnx")
    types = _import("skl2onnx.common.data_types")
    if output != "embedding" and not is_classifier(step):
        raise ValueError(
            f"output must be 'embedding' for a pipeline that ends in "
            f"{type(step).__name__}, got {output!r}. Pick that, or end in a classifier."
        )
    if output == "embedding" and not hasattr(step, "transform"):
        raise ValueError(
            f"output must be 'proba' or 'label' for a pipeline that ends in "
            f"{type(step).__name__}, got {output!r}. Pick one, or export a part of it."
        )
    options = {id(step): {"zipmap": False}} if is_classifier(step) else None
    width = getattr(step, "n_features_in_", None)
    try:
        with _quiet():
            model = skl2onnx.convert_sklearn(
                step,
                initial_types=[("X", types.FloatTensorType([None, width]))],
                target_opset=OPSET,
                options=options,
            )
    except Exception as error:
        raise ValueError(
            f"estimator must have steps for numbers that skl2onnx converts, got "
            f"{step!r}, of which it says {type(error).__name__}: {error}. Apply the "
            "step before, and export the rest."
        ) from error
    model = _as_written_for(model)
    kept = model.graph.output[1 if output == "proba" else 0]
    kept = type(kept).FromString(kept.SerializeToString())
    del model.graph.output[:]
    model.graph.output.append(kept)
    return model


def _as_written_for(model: Any) -> Any:
    """Return a model that names the versions that it was written for.

    skl2onnx names the lowest that will do, and only models of equal ones are merged.
    """
    helper = _import("onnx.helper")
    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in OPSET.items())
    return model


def _rename(model: Any, old: str, new: str) -> None:
    """Give an input or output of a model another name."""
    for value in [*model.graph.input, *model.graph.output]:
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
