"""A PostgreSQL server for tests, in a temporary folder."""

import os
import pwd
import shutil
import subprocess
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from _ood_workers import free_port


class Server:
    """A PostgreSQL server of our own."""

    def __init__(self, folder, commands, **run_as):
        self.folder, self.commands, self.run_as = folder, commands, run_as
        self.port = free_port()
        self.url = f"postgresql+psycopg://me@127.0.0.1:{self.port}/postgres"
        self.run("initdb", "-A", "trust", "-U", "me", "--no-sync")

    def run(self, command, *options):
        subprocess.run(
            [self.commands[command], "-D", self.folder / "data", *options],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **self.run_as,
        )

    def start(self):
        options = f"-F -p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = self.folder / "log"
        self.run("pg_ctl", "start", "--wait", "-l", log, "-o", options)

    def stop(self):
        self.run("pg_ctl", "stop", "--wait", "--mode", "fast")


@pytest.fixture(scope="session")
def server():
    """Start a server; where there is none to start, say so."""
    # Debian keeps the server's commands off the path.
    places = [os.environ["PATH"], *sorted(glob("/usr/lib/postgresql/*/bin"))]
    commands = {
        name: shutil.which(name, path=os.pathsep.join(places))
        for name in ("initdb", "pg_ctl")
    }
    if None in commands.values():
        pytest.skip(f"PostgreSQL is not installed: {commands}")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg, the driver, is not installed")
    run_as = {}
    # Not in pytest's own folder, which each run closes to other users.
    with TemporaryDirectory(prefix="postgres-") as folder:
        if os.getuid() == 0:  # PostgreSQL refuses to run as root.
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL refuses to run as root, and no user postgres")
            run_as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        server = Server(Path(folder), commands, **run_as)
        server.start()
        yield server
        server.stop()
