"""A PostgreSQL server of the tests' own: started once a process, on a free port, with a new database for each test."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg
import pytest

from db.care import upgrade

SETTINGS = {"fsync": "off", "max_connections": "60", "log_min_messages": "warning"}
"""Off is only what a power cut would need; a killed server loses nothing by it."""

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; its data belong to a user that is not root, as the server itself demands."""

    programs: Path
    folder: Path
    port: int
    user: list[str]

    def url(self, database: str) -> str:
        """Return the address of a database; its password must never be told."""
        return f"postgresql://sesmo:secret@127.0.0.1:{self.port}/{database}"

    def control(self, *arguments: str, check: bool = True) -> None:
        """Start, stop or restart the server, and wait until that is done."""
        given = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        options = f"-p {self.port} -k {self.folder} -h 127.0.0.1 {given}"
        command = [*self.user, str(self.programs / "pg_ctl"), "-D", str(self.folder / "data"), "-w", "-t", "60"]
        log = ["-l", str(self.folder / "log"), "-o", options] if arguments[0] in ("start", "restart") else []
        quiet = subprocess.DEVNULL
        subprocess.run([*command, *log, *arguments], check=check, stdout=quiet, stderr=quiet, timeout=90, cwd="/")

    def do(self, *statements: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run statements as the owner; return the rows of the last one."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def new_database(self, options: str = "") -> str:
        """Make an empty database and return its address."""
        name = f"test_{next(_numbers)}"
        self.do(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def migrated_database(self) -> str:
        """Make a database with the newest schema, quickly, and return its address."""
        if not self.do("SELECT 1 FROM pg_database WHERE datname = 'migrated'"):
            self.do("CREATE DATABASE migrated")
            upgrade(self.url("migrated"))
        return self.new_database("TEMPLATE migrated")


def programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip with the reason where there is none."""
    found = [Path(path).resolve() for path in [shutil.which("pg_ctl")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("needs PostgreSQL's pg_ctl; on Debian: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def running_server() -> Iterator[Server]:
    """Give a server, and take it away with all that is in it."""
    where = programs()
    folder = Path(tempfile.mkdtemp(prefix="sesmo-pg-"))
    user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        names = {entry.pw_name for entry in pwd.getpwall()}
        name = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, name)
        user = ["runuser", "-u", name, "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(where, folder, port, user)
    # A language's order of letters, which is not SQLite's: no answer may depend on it.
    version = subprocess.run([where / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    major = int((re.search(r"\d+", version) or ["0"])[0])
    locale = ["--locale-provider=icu", "--icu-locale=en-US"] if major >= 15 else ["--locale=C"]
    make = [
        str(where / "initdb"),
        "-D",
        str(folder / "data"),
        "-U",
        "sesmo",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "-N",
        *locale,
    ]
    try:
        subprocess.run([*user, *make], check=True, capture_output=True, timeout=90, cwd="/")
        server.control("start")
        yield server
    finally:
        server.control("stop", "-m", "immediate", check=False)
        shutil.rmtree(folder, ignore_errors=True)
