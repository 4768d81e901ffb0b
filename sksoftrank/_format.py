"""The format of files: JSON and arrays in one container of safetensors.

A file is what any reader of safetensors opens. Its metadata hold one key, whose text is
canonical JSON: equal content gives equal bytes, which several keys would not, for they
come in random order. A checksum covers every byte but its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from sksoftrank._checks import check_path

Array = npt.NDArray[Any]
# Raised with any change to what a file says, or to how it says it.
SCHEMA = 1
# What safetensors holds as it is.
DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
# As in safetensors: of a longer one, the reader makes nothing.
MAX_HEADER = 100_000_000
_KEY = "sksoftrank"
# How each file begins, after the 8 bytes for the header's length: keys are sorted.
_START = f'{{"__metadata__":{{"{_KEY}":"{{\\"checksum\\":\\"'.encode()
_CHECKSUM = slice(8 + len(_START), 8 + len(_START) + 64)
_BLANK = b"0" * 64
_KEYS = {"checksum", "content", "kind", "schema", "versions"}
_PACKAGES = ("numpy", "scikit-learn", "sksoftrank", "torch")


def is_native(dtype: np.dtype[Any]) -> bool:
    """Return whether the container holds arrays of a dtype as they are."""
    return dtype.isnative and dtype.str[1:] in DTYPES


def write(
    path: str | os.PathLike[str],
    kind: str,
    content: Any,
    arrays: Mapping[str, Array],
) -> None:
    """Write a file, whole or not at all.

    Parameters
    ----------
    path : str or PathLike
        Where to. What is there stays until the new file is complete.
    kind : str
        What the file holds, such as "estimator", to be named in `read`.
    content : object
        What JSON takes, without NaN.
    arrays : mapping of str to ndarray
        Of dtypes for which `is_native` is true.

    Raises
    ------
    ValueError
        If the content is too long, or `path` is a folder.
    OSError
        If the file can't be written; what was there before is as it was.
    """
    document = {
        "checksum": _BLANK.decode(),
        "content": content,
        "kind": kind,
        "schema": SCHEMA,
        "versions": _versions(),
    }
    # They are read by their addresses.
    packed = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    data = bytearray(safetensors.numpy.save(packed, {_KEY: _canonical(document)}))
    if _header_length(data) > MAX_HEADER:
        raise ValueError(
            f"estimator must have less than {MAX_HEADER:,} bytes beside its arrays of "
            "numbers. Give it fewer names or categories."
        )
    assert data[8:].startswith(_START)
    data[_CHECKSUM] = _digest(data)
    replace(path, data)


def read(path: str | os.PathLike[str], kind: str) -> tuple[Any, dict[str, Array]]:
    """Return the content and the arrays of a file, once every byte is accounted for.

    Parameters
    ----------
    path : str or PathLike
        Where from.
    kind : str
        What the file is to hold.

    Returns
    -------
    content : object
        As given to `write`.
    arrays : dict of str to ndarray
        As given to `write`.

    Raises
    ------
    ValueError
        If the file is none of these, or is not as it was written.
    """
    if not stat.S_ISREG(os.stat(check_path("path", path)).st_mode):
        refuse(path, "which is no file", "Name the file itself.")
    with open(path, "rb") as file:
        data = bytearray(file.read(_CHECKSUM.stop))
        if not data[8:].startswith(_START) or len(data) < _CHECKSUM.stop:
            what = "which is empty" if not data else "which begins otherwise"
            refuse(path, what, "Pass one that it wrote, of its full length.")
        # Before the rest is read, which may be long.
        size = os.fstat(file.fileno()).st_size
        if not len(data) < 8 + _header_length(data) <= min(size, 8 + MAX_HEADER):
            _refuse_damaged(path)
        data += file.read()
    if _digest(data) != data[_CHECKSUM]:
        _refuse_damaged(path)
    try:
        header = json.loads(data[8 : 8 + _header_length(data)])
        text = header["__metadata__"][_KEY]
        document = json.loads(text)
        schema = document["schema"]
        is_ours = type(schema) is int and schema >= 1 and _canonical(document) == text
        arrays = safetensors.numpy.load(bytes(data))
    except (*_MALFORMED, safetensors.SafetensorError):
        is_ours = False
    if not is_ours:
        refuse(path, "whose header is not as it is written", "Save it again.")
    if schema > SCHEMA:
        refuse(
            path,
            f"which a later version wrote: its schema is {schema}, and this version "
            f"reads up to {SCHEMA}",
            f"Update the package; the file names {document.get('versions')!r}.",
        )
    if schema < SCHEMA or document.keys() != _KEYS:
        refuse(path, f"of the schema {schema}", "Save it again with this version.")
    if document["kind"] != kind:
        refuse(
            path,
            f"which holds a {document['kind']!r} where a {kind!r} is needed",
            "Pass another file.",
        )
    return document["content"], arrays


_MALFORMED = (ValueError, TypeError, LookupError, RecursionError)


class FormatError(ValueError):
    """The error of a file, and in `what` the reason alone."""

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what = what


def refuse(
    path: str | os.PathLike[str],
    what: str,
    remedy: str,
    cause: Exception | None = None,
) -> NoReturn:
    """Raise the error of a file that can't be read."""
    raise FormatError(
        f"path must be a file that sksoftrank wrote, got {os.fspath(path)!r}, {what}. "
        f"{remedy}",
        what,
    ) from cause


def _refuse_damaged(path: str | os.PathLike[str]) -> NoReturn:
    refuse(
        path,
        "whose bytes are not those written: it was changed or cut short",
        "Copy it anew, or save it again.",
    )


def _canonical(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def _header_length(data: bytearray) -> int:
    return int.from_bytes(data[:8], "little")


def _digest(data: bytearray) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(view[: _CHECKSUM.start])
    digest.update(_BLANK)
    digest.update(view[_CHECKSUM.stop :])
    return digest.hexdigest().encode()


def replace(path: str | os.PathLike[str], data: bytearray) -> None:
    """Put a file in the place of what is there, in one step."""
    target = Path(os.path.realpath(check_path("path", path)))  # A link stays one.
    # Who may would put a file in the place of a device, which then is lost.
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "a device or pipe"
        raise FormatError(
            f"path must be that of a file, got {what}, {os.fspath(path)!r}. Name a "
            "file.",
            f"which is {what}",
        )
    # In the same folder: only within a file system is a file put in place in one step.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(temporary, flags, 0o666)
        try:
            with suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            left = memoryview(data)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: nothing was written, and what was there before is as "
            "it was. Make room, or name another place",
            os.fspath(path),
        ) from error
    if os.name == "posix":  # The new name too must outlive a loss of power.
        with suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
