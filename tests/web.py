"""What the tests of the web process share: a small scored plate, and a real server on a free port."""

import json
import shutil
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from db import incidents
from db.engine import open_engine
from db.plates import import_treatments
from sesmo_live import service
from sesmo_live.records import Treatment
from sesmo_live.web.server import Serving, serve
from tests.conftest import settings, write_image
from tests.stub import lazy_stub, write_stub_model

TOKEN = "a-token-of-the-tests"  # noqa: S105
NASTY = '<img src=x onerror="alert(1)">'
FORMULA = '=HYPERLINK("http://evil.example")'
PLATE = "P<b>1"


def make_plate(folder: Path) -> Path:
    """Score a small plate into `folder`/s.db: 4 wells, 2 time points, 2 fields, a broken image; return the database."""
    images = folder / "in"
    for number, well in enumerate(("A01", "A02", "B01", "B02")):
        for time_point in (1, 2):
            for field in (1, 2):
                name = f"{well}_f{field}_t{time_point}_cPhase_z0.tif"
                write_image(images / name, 100 * number + 10 * time_point + field)
    (images / "B02_f3_t2_cPhase_z0.tif").write_bytes(b"II*\0 broken")
    db = folder / "s.db"
    model = write_stub_model(folder / "stub")
    run = settings(images, db, model, plate=PLATE, layout="sesmo", frame_interval_s=3600)
    quick = run.watching.model_copy(update={"retries": 0})
    run = run.model_copy(update={"watching": quick, "scoring": run.scoring.model_copy(update={"refuse": False})})
    before, service.lazy_scorer = service.lazy_scorer, lazy_stub
    try:
        done = service.score_folder(run)
    finally:
        service.lazy_scorer = before
    assert (done.progress.scored, done.progress.failed) == (16, 1), done
    treatments = [
        Treatment("A01", "DMSO", "negative"),
        Treatment("A02", "DMSO", "negative"),
        Treatment("B01", NASTY, "treatment", 1.0, "µM", 1.0),
        Treatment("B02", FORMULA, "treatment", 3.0, "µM", 3.0),
    ]
    with open_engine(db, write=True).begin() as connection:
        import_treatments(connection, PLATE, treatments)
        incidents.open_incident(connection, "stalled", PLATE, f"plate {PLATE} is late; look at it", plate_id=1)
    return db


@pytest.fixture(scope="session")
def scored_plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small scored plate, which no test may change."""
    folder = tmp_path_factory.mktemp("web")
    make_plate(folder)
    return folder


@pytest.fixture
def plate_db(scored_plate: Path, tmp_path: Path) -> Path:
    """Return a copy of the small plate's database, whose images lie where they lay."""
    with closing(sqlite3.connect(scored_plate / "s.db")) as source, closing(sqlite3.connect(tmp_path / "s.db")) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = WAL")
    return tmp_path / "s.db"


@pytest.fixture
def moved_plate(scored_plate: Path, tmp_path: Path) -> Path:
    """Return the database of a copy of the small plate, images and all, which a test may damage."""
    shutil.copytree(scored_plate / "in", tmp_path / "in")
    shutil.copytree(scored_plate / "stub", tmp_path / "stub")
    with closing(sqlite3.connect(scored_plate / "s.db")) as source, closing(sqlite3.connect(tmp_path / "s.db")) as copy:
        source.backup(copy)
        copy.execute("UPDATE image SET path = replace(path, ?, ?)", (str(scored_plate / "in"), str(tmp_path / "in")))
        copy.execute("UPDATE plate SET folder = ?", (str(tmp_path / "in"),))
        copy.commit()
        copy.execute("PRAGMA journal_mode = WAL")
    return tmp_path / "s.db"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """Return the one sentence of a refused request."""
        (key,) = self.json
        assert key == "detail"
        assert isinstance(self.json["detail"], str)
        return str(self.json["detail"])


@dataclass(frozen=True, slots=True)
class Live:
    """A server that runs; requests are sent as they are written here."""

    address: str

    @property
    def host(self) -> str:
        """Return the host and port of the server."""
        return urlsplit(self.address).netloc

    def connection(self) -> HTTPConnection:
        """Return a fresh connection."""
        return HTTPConnection(self.host, timeout=30)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send one request; `body` is sent as it is, or as JSON. Names of headers have _ for -."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
        with closing(self.connection()) as connection:
            connection.request(method, quote(path, safe="/?&=%:[]"), body, given)
            return read(connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        """Ask a question."""
        return self.send("GET", path, **headers)

    def write(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Change something, with the token."""
        return self.send(method, path, body, Authorization=f"Bearer {TOKEN}", **headers)


def read(response: HTTPResponse) -> Answer:
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@contextmanager
def live(db: Path, **options: Any) -> Iterator[Live]:
    """Serve a database on a free port of this computer, in a thread, until the context ends."""
    said: list[str] = []
    failed: list[BaseException] = []
    stop = threading.Event()
    serving = replace(Serving(str(db), "127.0.0.1", 0, TOKEN), **options)

    def run() -> None:
        try:
            serve(serving, stop, said.append)
        except BaseException as error:  # noqa: BLE001 — handed to the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not said:
            assert not failed, failed
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        yield Live(said[0].split()[2])
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert not failed, failed


def answers(address: str, timeout_s: float = 5.0) -> int:
    """Return the status with which an address answers, 0 if nobody does."""
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as response:  # noqa: S310 — an address of the test
            return int(response.status)
    except OSError as error:
        return int(getattr(error, "code", 0))


@pytest.fixture(scope="session")
def reading(scored_plate: Path) -> Iterator[Live]:
    """Return a server over the small plate, for tests that change nothing."""
    with live(scored_plate / "s.db") as running:
        yield running
