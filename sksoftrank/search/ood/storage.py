"""Where a study is kept: in memory, in an SQLite file, in a database, as the user says.

Optuna's storages do the work. Ours is what makes SQLite safe for several processes,
lets a server be away for a while, and says what to do where a storage fails.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import (
    BaseStorage,
    InMemoryStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)

# Seconds between the signs of life of a trial, and until it is given up without one.
BEAT_SECONDS = 10
GRACE_SECONDS = 60
# Seconds that a server has to answer, that it may be away, and that a file is locked.
_CONNECT_SECONDS = 10
_OUTAGE_SECONDS = 30
_LOCK_SECONDS = 60
# A machine that is gone says nothing. Without these, its last answer is waited for
# for a quarter of an hour, or for ever.
_POSTGRESQL = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": _CONNECT_SECONDS,
    "tcp_user_timeout": 1000 * _CONNECT_SECONDS,
}
_MYSQL = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _OUTAGE_SECONDS}
_CONNECT_OPTIONS = {
    **dict.fromkeys(("psycopg", "psycopg2"), _POSTGRESQL),
    **dict.fromkeys(("pymysql", "mysqldb"), _MYSQL),
}
# Times that trials whose worker was killed are run, for they may be what kills it.
_N_RETRIES = 3
_N_ATTEMPTS = 8

_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "smb2", "smb3", "smbfs"),
}
_MOUNTS = Path("/proc/self/mounts")
_FIXES = {
    "is full": "make room on the disk",
    "I/O": "make room on the disk, or mend it",
    "locked": "end the process that holds it",
    "readonly": "mend the permissions of the file and its folder",
    "malformed": "put back a copy of the file or pass another path",
    "not a database": "put back a copy of the file or pass another path",
}

Result = TypeVar("Result")


def is_in_memory(storage: Any) -> bool:
    """Return whether no other process can see a study."""
    return storage is None or isinstance(storage, InMemoryStorage)


def open_storage(storage: Any) -> BaseStorage:
    """Return Optuna's storage for None, a path, a URL or a storage.

    Raises
    ------
    ValueError
        If a file or a URL is of no database.
    OSError
        If a file can't be used or a server not be reached.
    ImportError
        If the database's driver is missing.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    url = str(storage)
    if "://" not in url:
        url = f"sqlite:///{Path(storage).expanduser()}"
    path = url.removeprefix("sqlite:///").partition("?")[0]
    if path not in (url, "", ":memory:"):
        _prepare_file(Path(path))
    return _open_database(url)


@contextmanager
def storage_errors(storage: Any) -> Iterator[None]:
    """Say what to do where a storage fails while it is used."""
    if is_in_memory(storage):
        yield
        return
    # Optuna depends on it, but not every storage.
    from sqlalchemy.exc import SQLAlchemyError

    failures: list[type[Exception]] = [StorageInternalError, SQLAlchemyError]
    if "grpc" in sys.modules:  # Optuna's proxy lets its errors through.
        failures.append(sys.modules["grpc"].RpcError)
    try:
        yield
    except tuple(failures) as error:
        raise _failure(storage, error, "Finished trials are kept") from error


def reconnect(call: Callable[[], Result]) -> Result:
    """Return what `call` does, anew where the database's connection broke under it.

    The next connection waits for the server: see `_wait_for_server`.
    """
    for _ in range(2):
        try:
            return call()
        except StorageInternalError as error:
            if not _is_broken(error.__cause__):
                raise
    return call()


def _is_broken(error: Any) -> bool:
    from sqlalchemy.exc import PendingRollbackError

    # Optuna reads trials once more on the connection that broke while it read them.
    return isinstance(error, PendingRollbackError) or getattr(
        error, "connection_invalidated", False
    )


def has_heartbeat(storage: BaseStorage) -> bool:
    """Return whether the storage tells trials of killed workers from others."""
    return (
        isinstance(storage, RDBStorage) and storage.get_heartbeat_interval() is not None
    )


def retry_callback(max_retry: int | None = None) -> RetryHeartbeatStaleTrialCallback:
    """Return what queues a trial once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=max_retry)


def release(storage: BaseStorage) -> None:
    """Close a database's connections; it opens others when it is next used."""
    if isinstance(storage, RDBStorage) and _outlives(storage):
        storage.remove_session()
        storage.engine.dispose()


def _outlives(storage: RDBStorage) -> bool:
    """Return whether a database is more than its connection: no SQLite in memory."""
    return storage.engine.url.database not in (None, "", ":memory:")


def shown(storage: Any) -> str:
    """Return a storage as text, without a password."""
    if isinstance(storage, str | os.PathLike):
        return repr(re.sub(r"(?<=://)([^:@]*):.*@", r"\1:***@", os.fspath(storage)))
    return f"<{type(storage).__name__}>"


def _failure(storage: Any, error: BaseException, left: str) -> ConnectionError:
    """Return an error that says what failed, what is left and what to do."""
    said = _first_line(error.__cause__ or error)
    known = (fix for word, fix in _FIXES.items() if word in said)
    fix = next(known, "start the server, or correct the path or URL")
    return ConnectionError(
        f"storage={shown(storage)} can't be used: {said}. {left}: {fix}, and fit again."
    )


def _first_line(error: BaseException) -> str:
    text = error.details() if hasattr(error, "details") else error  # gRPC's is longer.
    return str(text).strip().partition("\n")[0].rstrip(".") or type(error).__name__


# -- SQLite --------------------------------------------------------------------------


def _prepare_file(path: Path) -> None:
    """Make a file an SQLite database that processes can write to side by side."""
    name = repr(str(path))
    if path.is_dir() or not path.parent.is_dir():
        kind = "a directory" if path.is_dir() else "in a directory that is not there"
        raise FileNotFoundError(
            f"storage must be the path of a file to keep the trials in, got {name}, "
            f"{kind}. Correct the path, or make its directory."
        )
    system = _file_system(path)
    if system in _NETWORK:
        raise OSError(
            f"storage={name} must be on a disk of this machine, got a network file "
            f"system, {system}, whose locks SQLite can't rely on. Use a path on a local"
            " disk, or the URL of a database such as 'postgresql://user@host/name'."
        )
    start = b""
    if path.exists():
        with path.open("rb") as file:
            start = file.read(16)
    if start not in (b"", b"SQLite format 3\0"):
        kind, fix = "a file of another kind", "Pass another path."
        if start.startswith(b'{"op_code"'):
            kind = "a journal of Optuna's"
            fix = (
                "Pass JournalStorage(JournalFileBackend(path)) of optuna.storages, or "
                "another path."
            )
        raise ValueError(
            f"storage={name} must be an SQLite database or a new file, got {kind}. "
            f"{fix}"
        )
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise _failure(path, error, "Nothing was trained") from error


def _file_system(path: Path) -> str | None:
    """Return the kind of file system that a path is on, where the system tells."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return None
    # The last of the deepest: what is mounted over another hides it.
    folder, deepest, found = path.parent.resolve(), -1, None
    for _, place, kind, *_ in (line.split(" ") for line in lines):
        mount = Path(place.encode().decode("unicode_escape"))
        if folder.is_relative_to(mount) and len(mount.parts) >= deepest:
            deepest, found = len(mount.parts), kind
    return found


def _lock_at_begin(engine: Any) -> None:
    """Let a transaction take SQLite's lock when it begins.

    Optuna reads a row and then writes it. SQLite has no lock on a row, so that two
    processes might both find a trial unfinished, and both finish it.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        # What is committed outlives the process; only a power cut may take the last
        # trials back. To wait for the disk at each commit takes longer than the rest.
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


# -- Servers -------------------------------------------------------------------------


def _open_database(url: str) -> RDBStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

    is_sqlite = url.startswith("sqlite")
    for attempt in range(_N_ATTEMPTS):
        try:
            driver = make_url(url).get_driver_name()
            options: dict[str, Any] = {"pool_pre_ping": not is_sqlite}
            if is_sqlite:
                options["connect_args"] = {"timeout": _LOCK_SECONDS}
            elif driver in _CONNECT_OPTIONS:
                options["connect_args"] = _CONNECT_OPTIONS[driver]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                rdb = RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=BEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=retry_callback(_N_RETRIES),
                )
            break
        except ImportError as error:
            raise ImportError(
                f"storage={shown(url)} needs a driver that is not installed: "
                f"{_first_line(error.__cause__ or error)}. Install it with pip, e.g. "
                "psycopg[binary] for PostgreSQL or pymysql for MySQL."
            ) from error
        except (ArgumentError, ValueError) as error:
            raise ValueError(
                "storage must be a path, a URL such as 'postgresql://user@host/name', "
                f"or an Optuna storage, got {shown(url)}: {_first_line(error)}. "
                "Correct the URL."
            ) from error
        except (SQLAlchemyError, StorageInternalError) as error:
            # Another process may be making the tables at this very moment.
            is_down = isinstance(error, OperationalError) and not is_sqlite
            if is_down or attempt + 1 == _N_ATTEMPTS:
                raise _failure(url, error, "Nothing was trained") from error
            time.sleep(random.uniform(0.05, 0.2) * (attempt + 1))
    if not is_sqlite:
        _wait_for_server(rdb.engine)
    elif _outlives(rdb):
        _lock_at_begin(rdb.engine)
        rdb.engine.dispose()
    return rdb


def _wait_for_server(engine: Any) -> None:
    """Let connections that are lost come back when the server does."""
    from sqlalchemy import event

    away_since: list[float] = []

    @event.listens_for(engine, "do_connect")
    def _(dialect: Any, _: Any, args: Any, kwargs: Any) -> Any:
        while True:
            try:
                connection = dialect.connect(*args, **kwargs)
            except dialect.loaded_dbapi.OperationalError:
                away_since.append(time.monotonic())
                if time.monotonic() - away_since[0] > _OUTAGE_SECONDS:
                    raise
                time.sleep(0.5)
            else:
                away_since.clear()
                return connection
