"""Where a study is kept: in memory, in a journal file, or in a database."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import (
    BaseStorage,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
    get_storage,
)
from optuna.storages.journal import JournalFileBackend

try:
    import fcntl
except ImportError:  # Not on Windows, where Optuna's own lock has to do.
    fcntl = None  # type: ignore[assignment]

# Seconds that a server has to answer, and a locked SQLite file to be free.
_CONNECT_SECONDS = 10
_LOCK_SECONDS = 60
_SCHEMA_ATTEMPTS = 8


def is_in_memory(storage: Any) -> bool:
    """Return whether no other process can see a study."""
    return storage is None or isinstance(storage, InMemoryStorage)


def open_storage(storage: Any) -> BaseStorage:
    """Return Optuna's storage for None, a path, a URL or a storage.

    Raises
    ------
    ValueError
        If a file is no journal, with the line that is not.
    OSError
        If a file can't be opened or a server not be reached.
    ImportError
        If the database's driver is missing.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        if isinstance(storage, RDBStorage):
            _serialize_sqlite(storage)
        return get_storage(storage)
    if "://" in str(storage):
        return _open_url(str(storage))
    return _open_journal(Path(storage).expanduser())


@contextmanager
def storage_errors(storage: Any) -> Iterator[None]:
    """Say what to do where a storage fails while it is used."""
    if is_in_memory(storage):
        yield
        return
    # Optuna depends on it, but not every storage.
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise ConnectionError(
            f"storage={shown(storage)} failed during the search: "
            f"{_first_line(error.__cause__ or error)}. Finished trials are kept: mend "
            "it, and fit again to go on from there."
        ) from error


def shown(storage: Any) -> str:
    """Return a storage as text, without a password."""
    if isinstance(storage, str) and "://" in storage:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            return repr(make_url(storage).render_as_string(hide_password=True))
        except ArgumentError:
            return f"'{storage.partition('://')[0]}://...'"
    if isinstance(storage, str | os.PathLike):
        return repr(os.fspath(storage))
    return f"<{type(storage).__name__}>"


# -- Journal files -------------------------------------------------------------------


class JournalFile(JournalFileBackend):
    """Optuna's journal, that outlives a killed writer and a full disk.

    The lock is the kernel's, which ends with the process that holds it. What a failed
    write has left behind is cut off: a part of a line would spoil the next one.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append `logs`, all or none of them."""
        if fcntl is None:
            super().append_logs(logs)
            return
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        try:
            fd = os.open(self._file_path, os.O_RDWR | os.O_APPEND)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                _append(fd, "".join(lines).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(
                error.errno,
                f"storage={self._file_path!r} can't be written to: {error.strerror}. "
                "What was written before is intact: make room or mend the file's "
                "permissions, and fit again to go on from there",
            ) from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the logs from number `log_number_from` on."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise _corrupt(self._file_path, _first_bad_line(self._file_path)) from error


def _append(fd: int, data: bytes) -> None:
    end = os.lseek(fd, 0, os.SEEK_END)
    whole = _end_of_lines(fd, end)
    if whole < end:
        os.ftruncate(fd, whole)
    written = 0
    try:
        while written < len(data):
            written += os.write(fd, data[written:])
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, whole)
        raise


def _end_of_lines(fd: int, end: int) -> int:
    """Return the size of the file less a last line that was not written to its end."""
    place = end
    while place > 0:
        start = max(0, place - 4096)
        newline = os.pread(fd, place - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        place = start
    return 0


def _open_journal(path: Path) -> JournalStorage:
    if path.is_dir() or not path.parent.is_dir():
        kind = "a directory" if path.is_dir() else "in a directory that is not there"
        raise FileNotFoundError(
            f"storage must be the path of a file to keep the trials in, got "
            f"{str(path)!r}, {kind}. Correct the path, or make its directory."
        )
    try:
        backend = JournalFile(str(path))
        writable = os.access(path, os.R_OK | os.W_OK)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"storage={str(path)!r} can't be opened: {error.strerror}. Pass a file "
            "that can be written to",
        ) from error
    if not writable:
        raise PermissionError(
            f"storage={str(path)!r} must be a file that can be read and written. Mend "
            "its permissions, or pass another path."
        )
    line = _first_bad_line(str(path))
    if line is not None:
        raise _corrupt(str(path), line)
    try:
        return JournalStorage(backend)
    except (KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise _corrupt(str(path), None) from error


def _first_bad_line(path: str) -> int | None:
    """Return the number of the first line that is no record; None if all are."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # Cut off: being written, or never finished.
            try:
                if "op_code" in json.loads(line):
                    continue
            except (ValueError, TypeError):
                pass
            return number
    return None


def _corrupt(path: str, line: int | None) -> ValueError:
    where = "" if line is None else f": line {line} is no record of it"
    return ValueError(
        f"storage={path!r} must be a journal of Optuna's or a new file, got one that "
        f"is not{where}. Pass another path, or keep a copy and cut "
        "the file off before that line."
    )


# -- Databases -----------------------------------------------------------------------


def _open_url(url: str) -> BaseStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import (
        ArgumentError,
        NoSuchModuleError,
        OperationalError,
        SQLAlchemyError,
    )

    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise _bad_url(url, error) from error
    is_sqlite = parsed.get_backend_name() == "sqlite"
    for attempt in range(_SCHEMA_ATTEMPTS):
        try:
            rdb = RDBStorage(url, engine_kwargs=_engine_kwargs(parsed))
            break
        except ImportError as error:
            raise ImportError(
                f"storage={shown(url)} needs a driver that is not installed: "
                f"{_first_line(error.__cause__ or error)}. Install it with pip, e.g. "
                "psycopg[binary] for PostgreSQL or pymysql for MySQL."
            ) from error
        except (SQLAlchemyError, StorageInternalError) as error:
            # Another process may be making the tables at this very moment.
            is_down = isinstance(error, OperationalError) and not is_sqlite
            if isinstance(error, ArgumentError):
                raise _bad_url(url, error) from error
            if is_down or attempt + 1 == _SCHEMA_ATTEMPTS:
                raise ConnectionError(
                    f"storage={shown(url)} can't be used: "
                    f"{_first_line(error.__cause__ or error)}. Nothing was trained: "
                    "start the server or correct the URL, and fit again."
                ) from error
            time.sleep(random.uniform(0.05, 0.2) * (attempt + 1))
    _serialize_sqlite(rdb)
    return get_storage(rdb)


def _bad_url(url: str, error: Exception) -> ValueError:
    return ValueError(
        "storage must be a path, a URL such as 'sqlite:///study.db' or "
        f"'postgresql://user@host/name', or an Optuna storage, got {shown(url)}: "
        f"{_first_line(error)}. Correct the URL."
    )


def _engine_kwargs(url: Any) -> dict[str, Any]:
    backend, driver = url.get_backend_name(), url.get_dialect().driver
    if backend == "sqlite":
        return {"connect_args": {"timeout": _LOCK_SECONDS}}
    kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if "connect_timeout" not in url.query:
        if driver in ("psycopg", "psycopg2", "pymysql", "mysqldb", "mariadbconnector"):
            kwargs["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}
        elif driver == "pg8000":
            kwargs["connect_args"] = {"timeout": _CONNECT_SECONDS}
    return kwargs


def _serialize_sqlite(storage: RDBStorage) -> None:
    """Let a transaction take SQLite's lock when it begins.

    Optuna reads a row and then writes it. SQLite has no lock on a row, so that two
    processes might both find a trial unfinished, and both finish it.
    """
    engine = storage.engine
    if engine.dialect.name != "sqlite" or getattr(engine, "_begins_at_once", False):
        return
    if _is_sqlite_in_memory(storage):
        return
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()
    engine._begins_at_once = True  # type: ignore[attr-defined]


def _is_sqlite_in_memory(storage: RDBStorage) -> bool:
    return storage.engine.url.database in (None, "", ":memory:")


def database(storage: BaseStorage) -> RDBStorage | None:
    """Return the database behind a storage; None if there is none."""
    inner = getattr(storage, "_backend", storage)
    return inner if isinstance(inner, RDBStorage) else None


def is_shared(storage: BaseStorage) -> bool:
    """Return whether other processes may work on a study at the same time."""
    rdb = database(storage)
    if rdb is not None:
        return not _is_sqlite_in_memory(rdb)
    return not isinstance(storage, InMemoryStorage)


def release(storage: BaseStorage) -> None:
    """Close a database's connections; it opens others when it is next used."""
    rdb = database(storage)
    if rdb is not None and is_shared(storage):
        rdb.remove_session()
        rdb.engine.dispose()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
