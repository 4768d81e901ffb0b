"""Fitted estimators in files, without pickle: reading one runs nothing that it says.

A file describes what an estimator's pickle would hold: plain values, arrays, and
objects of the classes listed here, each as its name and its attributes. What a name
stands for is looked up in that list and never imported, so that a file can ask for
nothing else. Steps of pipelines that are scikit-learn's own go through skops.
"""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from sksoftrank import _format
from sksoftrank._sklearn import METADATA_REQUEST, rows_of
from sksoftrank.compression import RankCompressor
from sksoftrank.detectors import OODDetector
from sksoftrank.detectors._methods import METHODS
from sksoftrank.estimators import (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.estimators._categories import CategoryEncoder, OneHotCategories
from sksoftrank.estimators._input import InputReader
from sksoftrank.estimators._recipe import Strength
from sksoftrank.estimators._transformer import check_patches
from sksoftrank.losses import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    LinearTemperature,
)
from sksoftrank.modules import CNN, MLP, AdaptedModule, ReducedModule, Transformer

__all__ = ["load", "save"]

Array = npt.NDArray[Any]

# What `save` takes, and `load` returns.
ESTIMATORS = (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    SoftRankEnsembleClassifier,
    RankCompressor,
    OODDetector,
    Pipeline,
    FrozenEstimator,
)
# Objects that a file may hold, by the name of their class.
CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *ESTIMATORS,
        *(InputReader, CategoryEncoder, OneHotCategories, Strength),
        *(ConstantTemperature, CosineTemperature),
        *(ExponentialTemperature, LinearTemperature),
        *METHODS.values(),
        # What the above hold of scikit-learn's, and what most pipelines start with.
        *(OneHotEncoder, OrdinalEncoder, StandardScaler, NearestNeighbors),
    )
}
# Classes and functions that a file may name.
NAMES: dict[str, Any] = {
    named.__name__: named
    for named in (
        *(MLP, CNN, Transformer, AdaptedModule, ReducedModule),
        *(CategoryEncoder, OneHotCategories, check_patches),
    )
}
# What JSON has no numbers for.
FLOATS = {repr(value): value for value in (math.nan, math.inf, -math.inf)}
SCALAR_TYPES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)
}
# Of arrays whose elements are no objects.
KINDS = "biufcUSMm"
_UNFINISHED = object()


def save(estimator: BaseEstimator, path: str | os.PathLike[str]) -> None:
    """Write an estimator to a file that holds data and no code.

    Equal estimators give equal bytes. What is at `path` is replaced in one step, or
    not at all.

    Parameters
    ----------
    estimator : estimator
        Fitted or not: one of the package's classifiers, an ensemble, a
        `RankCompressor`, an `OODDetector`, or a pipeline of them with scikit-learn's
        own steps. The latter, but for `StandardScaler`, need skops, the extra "files".
    path : str or PathLike
        Where to.

    Raises
    ------
    ValueError
        If the estimator holds what a file can't describe, such as callbacks, before
        anything is written.
    OSError
        If the file can't be written; what was there before is as it was.

    See Also
    --------
    load : The way back.

    Notes
    -----
    The optimizer's state is left out, as from a pickle. The file is of the format
    safetensors, with the description in its metadata.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier, load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(16, max_epochs=5, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.safetensors")
    ...     save(clf, path)
    ...     loaded = load(path)
    >>> bool((loaded.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    if type(estimator) not in ESTIMATORS:
        raise ValueError(
            "estimator must be one of this package's, or a pipeline of them, got "
            f"{type(estimator).__name__}. Of a search save best_estimator_, of a net "
            "its save_params."
        )
    writer = _Writer()
    try:
        content = writer.encode(estimator, "")
    except RecursionError:
        raise ValueError(
            "estimator must hold no parameter that holds itself. Give it plain values."
        ) from None
    _format.write(path, "estimator", content, writer.arrays)


def load(path: str | os.PathLike[str], *, trusted: Sequence[Any] = ()) -> Any:
    """Read an estimator that `save` wrote.

    It predicts to the last bit as the one that was saved, on the same machine, and can
    be trained on like one from a pickle.

    Parameters
    ----------
    path : str or PathLike
        Where from.
    trusted : sequence of types and functions, default=()
        Code of your own that the file may name, such as the `module` of a
        `SoftRankClassifier` or the class of a pipeline's step. It is called with
        arguments from the file. For steps with trees also scikit-learn's own
        ``sklearn.tree._tree.Tree``, which trusts a file's numbers unchecked.

    Returns
    -------
    estimator
        As it was saved; on the CPU, if its device is missing here.

    Raises
    ------
    ValueError
        If the file is none that `save` wrote, was changed, or names what is not
        trusted. None of its content is run.

    See Also
    --------
    save : The way there, with an example.

    Examples
    --------
    >>> import os, tempfile
    >>> from torch import nn
    >>> from sksoftrank import SoftRankClassifier, load, save
    >>> clf = SoftRankClassifier(nn.Linear, {"out_features": 2})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "linear.safetensors")
    ...     save(clf, path)
    ...     loaded = load(path, trusted=[nn.Linear])
    >>> loaded.module is nn.Linear
    True
    """
    named = (type, FunctionType, BuiltinFunctionType)
    if not isinstance(trusted, list | tuple) or not all(
        isinstance(given, named) for given in trusted
    ):
        raise ValueError(
            "trusted must be a list of classes and functions, not of their names, got "
            f"{trusted!r}. Import them."
        )
    content, arrays = _format.read(path, "estimator")
    reader = _Reader(path, arrays, {_full_name(given): given for given in trusted})
    try:
        estimator = reader.decode(content)
    except _RefusedError as error:
        _format.refuse(path, *error.args)
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "skops":
            raise
        # Whatever else it asks for: it was not `save` that wrote this.
        _format.refuse(
            path,
            f"of which no estimator can be made ({type(error).__name__}: {error})",
            "Save it again with this version.",
            error,
        )
    if reader.arrays or type(estimator) not in ESTIMATORS:
        _format.refuse(path, "which holds something else", "Save it again.")
    return estimator


def _full_name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


# -- Writing -----------------------------------------------------------------------


class _Writer:
    """Describes values in what JSON takes, and collects their arrays by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        # By identity: what two attributes share, they share again. With the objects
        # themselves, so that no other takes the place of one in memory.
        self._seen: dict[int, tuple[int, Any]] = {}

    def encode(self, value: Any, name: str) -> Any:
        """Return the description of what is found at `name`."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if isinstance(value, PurePath):
            return str(value)
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind in (list, tuple):
            items = [self.encode(v, f"{name}[{i}]") for i, v in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if kind is dict:
            pairs = value.items()
            return {"dict": [self._pair(key, v, name) for key, v in pairs]}
        if isinstance(value, np.generic):
            return {"scalar": self._encode_array(np.asarray(value), name)}
        if kind in (np.ndarray, np.memmap):
            return self._encode_array(value, name)
        if kind is np.random.RandomState:
            state = value.get_state(legacy=False)
            if state["bit_generator"] != "MT19937":
                raise _undescribed(name, value)
            return {"random_state": self.encode(state, name)}
        if kind is torch.device:
            return {"device": str(value)}
        if kind is partial and not value.keywords:
            parts = [value.func, *value.args]
            return {"partial": self.encode(parts, name)}
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return self._encode_name(value, name)
        is_known = CLASSES.get(kind.__name__) is kind
        if not is_known and not isinstance(value, BaseEstimator):
            raise _undescribed(name, value)
        if id(value) in self._seen:
            return {"same": self._seen[id(value)][0]}
        self._seen[id(value)] = len(self._seen), value
        if is_known:
            return self._encode_object(value, name)
        return self._encode_step(value, name)

    def _pair(self, key: Any, value: Any, name: str) -> list[Any]:
        place = f"{name}[{key!r}]"
        return [self.encode(key, place), self.encode(value, place)]

    def _encode_array(self, array: Array, name: str) -> Any:
        array = np.asarray(array)
        if array.dtype.kind == "O":
            flat = array.reshape(-1).tolist()
            items = [self.encode(v, f"{name}[{i}]") for i, v in enumerate(flat)]
            return {"objects": [list(array.shape), items]}
        if array.dtype.kind not in KINDS:
            raise _undescribed(name, array)
        # The order in memory decides how a product is rounded.
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        stored = np.asarray(array.T if is_fortran else array, order="C")
        if not _format.is_native(array.dtype):
            stored = np.frombuffer(stored.tobytes(), dtype=np.uint8)
        while name in self.arrays:  # Of keys that read alike.
            name += "'"
        self.arrays[name] = stored
        order = "F" if is_fortran else "C"
        return {"array": [name, array.dtype.str, list(array.shape), order]}

    def _encode_name(self, value: Any, name: str) -> Any:
        short = value.__name__
        for tag, names in (("known", NAMES), ("scalar_type", SCALAR_TYPES)):
            if names.get(short) is value:
                return {tag: short}
        path = value.__qualname__.split(".")
        try:
            found = reduce(getattr, path, cast(Any, sys.modules[value.__module__]))
        except (AttributeError, KeyError):
            found = None
        if found is not value:
            raise ValueError(
                f"{name} must be importable by its name to be saved, got {value!r}. "
                "Define it at the top of a module."
            )
        return {"trusted": _full_name(value)}

    def _encode_object(self, value: Any, name: str) -> Any:
        state = {
            attribute: self.encode(v, f"{name}.{attribute}" if name else attribute)
            for attribute, v in sorted(_state_of(value).items())
        }
        return {"object": [type(value).__name__, state]}

    def _encode_step(self, step: BaseEstimator, name: str) -> Any:
        """Return what skops makes of an estimator that is not the package's."""
        skops_io = _import_skops(f"{name}={type(step).__name__}()")
        try:
            dumped = skops_io.dumps(step)
            untrusted = skops_io.get_untrusted_types(data=dumped)
            ours = [t for t in untrusted if t.split(".")[0] in ("sksoftrank", "torch")]
            if not ours:
                skops_io.loads(dumped, trusted=untrusted)  # Lest it can't be read.
        except Exception as error:
            raise ValueError(
                f"{name} must be what skops can describe, got {step!r}, of which it "
                f"says {type(error).__name__}: {error}. Use another step."
            ) from error
        # Networks within are none that skops describes without their code.
        if ours:
            raise ValueError(
                f"{name} must hold none of this package's estimators, got "
                f"{type(step).__name__} around {ours}. Put them into a Pipeline; of a "
                "search take best_estimator_."
            )
        schema, files = _unpack(dumped)
        members = [
            [file, self._encode_array(np.frombuffer(data, np.uint8), f"{name}/{file}")]
            for file, data in files.items()
        ]
        return {"skops": [schema, members]}


def _undescribed(name: str, value: Any) -> ValueError:
    kind = type(value)
    return ValueError(
        f"{name} must be plain values, arrays or the package's own objects to be saved,"
        f" got {value!r} of {kind.__module__}.{kind.__qualname__}. Set it to what can "
        "be described, such as None, with set_params(...), or call set_callbacks() to "
        "part with scikit-learn's callbacks, before."
    )


def _state_of(value: Any) -> dict[str, Any]:
    """Return what is to be known of an object, by name."""
    if isinstance(value, NearestNeighbors):  # Its trees follow from its rows.
        return {"params": value.get_params(deep=False), "rows": rows_of(value)}
    if not isinstance(value, BaseEstimator):
        return vars(value)
    state = dict(value.__getstate__())
    requests = state.pop(METADATA_REQUEST, None)
    if requests is not None:
        state[METADATA_REQUEST] = {
            method: asked
            for method, request in vars(requests).items()
            if (asked := _plain_requests(getattr(request, "requests", {})))
        }
    return state


def _plain_requests(requests: dict[str, Any]) -> dict[str, Any]:
    """Return what `set_fit_request` takes: scikit-learn marks its own by a dollar."""
    return {
        name: alias
        for name, alias in requests.items()
        if not str(alias).startswith("$")
    }


# -- Reading -----------------------------------------------------------------------


class _RefusedError(Exception):
    """What a file holds that it may not, and what to do."""


class _Reader:
    """Makes values of their descriptions. Each array is used once, and no more."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        arrays: dict[str, Array],
        trusted: dict[str, Any],
    ) -> None:
        self.path, self.arrays, self.trusted = path, arrays, trusted
        self._objects: list[Any] = []
        self._makers: dict[str, Callable[[Any], Any]] = {
            "float": FLOATS.__getitem__,
            "tuple": lambda items: tuple(self.decode_all(items)),
            "dict": lambda pairs: dict(self.decode_all(pair) for pair in pairs),
            "array": self._make_array,
            "objects": self._make_objects,
            "scalar": lambda node: self.decode(node)[()],
            "scalar_type": SCALAR_TYPES.__getitem__,
            "random_state": self._make_random_state,
            "device": torch.device,
            "partial": self._make_partial,
            "known": NAMES.__getitem__,
            "trusted": self._find_trusted,
            "object": partial(self._keep, self._make_object),
            "skops": partial(self._keep, self._make_step),
            "same": self._find_same,
        }

    def decode(self, node: Any) -> Any:
        """Return what a node describes."""
        if isinstance(node, list):
            return self.decode_all(node)
        if not isinstance(node, dict):
            return node
        ((tag, value),) = node.items()
        return self._makers[tag](value)

    def decode_all(self, nodes: list[Any]) -> list[Any]:
        """Return what each node describes."""
        if not isinstance(nodes, list):
            raise TypeError(f"a list is needed, not {type(nodes).__name__}")
        return [self.decode(node) for node in nodes]

    def _make_array(self, value: Any) -> Array:
        name, text, shape, order = value
        dtype, stored = np.dtype(text), self.arrays.pop(name)
        if dtype.kind not in KINDS or dtype.names or dtype.subdtype:
            raise TypeError(f"{name} is of {dtype}")
        is_fortran = order == "F"
        expected = tuple(shape[::-1] if is_fortran else shape)
        if not _format.is_native(dtype):
            n_bytes = math.prod(expected) * dtype.itemsize
            if stored.dtype != np.uint8 or stored.shape != (n_bytes,):
                raise TypeError(f"{name} is not of {n_bytes} bytes")
            stored = np.ndarray(expected, dtype, stored.tobytes())
        if stored.dtype != dtype or stored.shape != expected:
            raise TypeError(
                f"{name} is of {stored.dtype} {stored.shape}, not {dtype} {expected}"
            )
        own = np.array(stored, order="C")  # Aligned, and writeable.
        return own.T if is_fortran else own

    def _make_objects(self, value: Any) -> Array:
        shape, nodes = value
        items = self.decode_all(nodes)
        array = np.empty(len(items), dtype=object)
        for place, item in enumerate(items):
            array[place] = item
        return array.reshape(shape)

    def _make_random_state(self, node: Any) -> np.random.RandomState:
        random_state, state = np.random.RandomState(0), self.decode(node)
        if not 0 <= state["state"]["pos"] <= 624:  # NumPy would read beyond its key.
            raise ValueError(f"a generator is at {state['state']['pos']} of 624")
        random_state.set_state(state)
        return random_state

    def _make_partial(self, parts: Any) -> Any:
        function: Any
        function, *given = self.decode_all(parts)
        return partial(function, *given)

    def _find_trusted(self, name: str) -> Any:
        if name not in self.trusted:
            raise _RefusedError(
                f"which names {name}, while {sorted(self.trusted)} are trusted",
                "If you know the file, import it and pass it in `trusted`.",
            )
        return self.trusted[name]

    def _keep(self, make: Callable[[Any], Any], value: Any) -> Any:
        """Return an object, which others may hold too."""
        place = len(self._objects)
        self._objects.append(_UNFINISHED)
        self._objects[place] = make(value)
        return self._objects[place]

    def _find_same(self, place: int) -> Any:
        found = self._objects[place]
        if found is _UNFINISHED:
            raise ValueError("an object holds itself")
        return found

    def _make_object(self, value: Any) -> Any:
        name, nodes = value
        cls: Any = CLASSES[name]
        state = {k: self.decode(node) for k, node in sorted(nodes.items())}
        missing = _required(cls) - state.keys()
        if missing or any(attribute.startswith("__") for attribute in state):
            raise ValueError(f"{name} needs {sorted(missing)} and got {sorted(state)}")
        return _restore(cls, state)

    def _make_step(self, value: Any) -> Any:
        schema, members = value
        step = json.loads(schema)
        skops_io = _import_skops(f"{os.fspath(self.path)!r}")
        dumped = _pack(schema, {n: self.decode(a).tobytes() for n, a in members})
        names = set(skops_io.get_untrusted_types(data=dumped))
        if not names <= self.trusted.keys():
            raise _RefusedError(
                f"whose step {step.get('__class__')} needs {sorted(names)}, while "
                f"{sorted(self.trusted)} are trusted",
                "If you know the file, import them and pass them in `trusted`.",
            )
        return skops_io.loads(dumped, trusted=sorted(names))


def _required(cls: Any) -> set[str]:
    """Return the attributes that every object of a class has."""
    if cls is NearestNeighbors:
        return {"params", "rows"}
    if issubclass(cls, BaseEstimator):
        return set(inspect.signature(cls).parameters)
    return {field.name for field in fields(cls)} if is_dataclass(cls) else set()


def _restore(cls: Any, state: dict[str, Any]) -> Any:
    """Return the object of which `_state_of` told."""
    if cls is NearestNeighbors:
        neighbors, rows = NearestNeighbors(**state["params"]), state["rows"]
        return neighbors if rows is None else neighbors.fit(rows)
    made = cls.__new__(cls)
    if not isinstance(made, BaseEstimator):
        vars(made).update(state)
        return made
    requests = state.pop(METADATA_REQUEST, {})
    made.__setstate__(state)
    with config_context(enable_metadata_routing=True):
        for method, asked in requests.items():
            getattr(made, f"set_{method}_request")(**asked)
    return made


# -- Steps of scikit-learn's -------------------------------------------------------


def _import_skops(what: str) -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            f"{what} has a step that needs skops: pip install 'sksoftrank[files]'.",
            name="skops",
        ) from error
    return skops.io


def _unpack(dumped: bytes) -> tuple[str, dict[str, bytes]]:
    """Return the schema and the files within what skops dumps, less what is random.

    It numbers objects and files by where they lie in memory.
    """
    with zipfile.ZipFile(io.BytesIO(dumped)) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    schema = json.loads(files.pop("schema.json"))
    ids: dict[Any, int] = {}
    names: dict[str, str] = {}
    for number, node in enumerate(_nodes(schema)):
        # Plain values have one place in memory or several, as Python likes.
        is_plain = node.get("__loader__") == "JsonNode"
        key = ("plain", number) if is_plain else node["__id__"]
        node["__id__"] = ids.setdefault(key, len(ids))
        file = node.get("file")
        if isinstance(file, str) and file in files:
            suffix = os.path.splitext(file)[1]
            node["file"] = names.setdefault(file, f"{len(names)}{suffix}")
    if names.keys() != files.keys():
        raise ValueError("its files are not those that its schema names")
    renamed = {new: _without_padding(files[old]) for old, new in names.items()}
    return json.dumps(schema, separators=(",", ":")), renamed


def _without_padding(file: bytes) -> bytes:
    """Return a file of NumPy's without what lies between fields, as in nodes of trees.

    It is whatever was in memory before.
    """
    if b"'descr': [" not in file[:64]:  # Or no fields at all.
        return file
    array = np.load(io.BytesIO(file), allow_pickle=False)
    clean = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        clean[name] = array[name]
    buffer = io.BytesIO()
    np.save(buffer, clean)
    return buffer.getvalue()


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the nodes of skops's schema, in order."""
    if isinstance(value, dict):
        if isinstance(value.get("__id__"), int):
            yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _pack(schema: str, files: dict[str, bytes]) -> bytes:
    """Return what skops loads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {**files, "schema.json": schema.encode()}.items():
            archive.writestr(name, data)
    return buffer.getvalue()
