"""The page beside the scoring: it comes up, ends with its parent however that ends, and never stops the scoring."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from sesmo_live import serving as parent
from sesmo_live.config import settings_from
from sesmo_live.errors import ConfigError, UsageError
from sesmo_live.web.server import Serving, bind, stored_token, token_of
from tests.cli import Sesmo, runner, sentence
from tests.conftest import write_image
from tests.web import TOKEN, answers, live, plate_db, scored_plate

__all__ = ["plate_db", "scored_plate"]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


@contextmanager
def daemon(folder: Path, *words: object) -> Iterator["subprocess.Popen[str]"]:
    """Run `sesmo-live run` with a scorer without a network; what it says goes to `folder`/said."""
    command = [sys.executable, "-m", "tests.stub", "run", "--watch", folder / "in", "--db", folder / "s.db"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [*map(str, command), *map(str, words)], cwd=ROOT, stderr=said, stdout=said, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def wait_for(folder: Path, pattern: str, process: "subprocess.Popen[str]") -> str:
    """Return what the daemon says once it says something like `pattern`."""
    until = time.monotonic() + 60
    while not (found := re.search(pattern, (folder / "said").read_text())):
        assert process.poll() is None, (folder / "said").read_text()
        assert time.monotonic() < until, (folder / "said").read_text()
        time.sleep(0.05)
    return found[0]


def gone(process: psutil.Process, timeout_s: float = 15.0) -> bool:
    """Say whether a process ends within so many seconds."""
    until = time.monotonic() + timeout_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def page_of(process: "subprocess.Popen[str]") -> psutil.Process:
    """Return the page's process of a daemon."""
    (page,) = [
        child for child in psutil.Process(process.pid).children() if "sesmo_live.web" in " ".join(child.cmdline())
    ]
    return page


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_page_comes_with_run_and_ends_with_it(tmp_path: Path, stub_model: Path, ending: signal.Signals) -> None:
    write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif")
    with daemon(tmp_path, "--model", stub_model, "--port", 0, "--no-refuse") as process:
        address = wait_for(tmp_path, r"http://127\.0\.0\.1:\d+/", process)
        assert answers(f"{address}api/v1/run") == 200
        assert (tmp_path / "s.db.token").read_text().strip() not in (tmp_path / "said").read_text()
        page = page_of(process)
        assert (tmp_path / "s.db.token").read_text().strip() not in " ".join(page.cmdline())
        process.send_signal(ending)
        assert process.wait(30) == (0 if ending is signal.SIGTERM else -9)
        assert gone(page), "the page outlived its daemon"
        assert answers(f"{address}api/v1/run", 2) == 0


def test_a_page_that_crashes_comes_again_and_scoring_goes_on(tmp_path: Path, stub_model: Path) -> None:
    (tmp_path / "in").mkdir()
    with daemon(tmp_path, "--model", stub_model, "--port", 0, "--no-refuse") as process:
        wait_for(tmp_path, r"http://\S+", process)
        page_of(process).kill()
        wait_for(tmp_path, r"is started again, and scoring goes on[\s\S]*http://\S+", process)
        write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif")
        addresses = re.findall(r"http://127\S+?/", (tmp_path / "said").read_text())
        until = time.monotonic() + 30
        while b'"scored":1' not in _body(f"{addresses[-1]}api/v1/run"):
            assert time.monotonic() < until
            time.sleep(0.2)


def _body(address: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(address, timeout=5) as response:  # noqa: S310 — an address of the test
        return bytes(response.read())


def test_a_busy_port_is_told_and_scoring_goes_on(tmp_path: Path, stub_model: Path) -> None:
    write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif")
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with daemon(tmp_path, "--model", stub_model, "--port", port, "--no-refuse") as process:
            wait_for(tmp_path, rf"the page is not served: port {port} of 127.0.0.1 cannot be served", process)
            wait_for(tmp_path, "the page is not served; scoring goes on", process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert connection.execute("SELECT state FROM image").fetchall() == [("scored",)]


def test_serve_serves_a_database_alone_until_it_is_told_to_end(plate_db: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from sesmo_live.cli import main; main()",
        "serve",
        "--db",
        plate_db,
        "--port",
        "0",
    ]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        line = process.stderr.readline()
        address = line.split()[2]
        assert f"(changes need the token in {plate_db}.token); Ctrl-C ends" in line
        assert answers(f"{address}openapi.json") == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "0.0.0.0 can be reached from other computers"),  # noqa: S104 — refused
        (("--host", "scope1"), "scope1 can be reached from other computers"),
        (("--port", "99999"), None),
        (("--token-file", "none"), "the token file none cannot be read"),
        (("--token-file", "empty"), "the token file empty is empty"),
        (("--token-file", "short"), "the token must have 16 ASCII letters or more"),
        (("--host", "192.0.2.1", "--token-file", "good"), "cannot be served"),
        (("--host", "no.such.host.invalid", "--token-file", "good"), "is no address of this computer"),
        (("--host", ""), "web.host"),
    ],
)
def test_serve_refuses_in_one_sentence(
    sesmo: Sesmo, plate_db: Path, tmp_path: Path, words: tuple[str, ...], said: str | None
) -> None:
    for name, text in (("empty", "\n"), ("short", "secret"), ("good", TOKEN)):
        (tmp_path / name).write_text(text)
    done = sesmo("serve", "--db", plate_db, *words, code=2)
    if said is not None:
        assert said in sentence(done)
    assert not (tmp_path / "s.db.token").exists()


def test_serve_needs_a_database(sesmo: Sesmo, tmp_path: Path) -> None:
    assert "there is no database" in sentence(sesmo("serve", "--db", tmp_path / "none.db", "--port", 0, code=2))
    assert not (tmp_path / "none.db.token").exists()


def test_the_token_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "s.db.token"
    token = stored_token(file)
    assert len(token) >= 32
    assert stored_token(file) == token
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("")
    assert len(stored_token(file)) >= 32
    given = Serving(str(tmp_path / "s.db"), "0.0.0.0", 0, TOKEN)  # noqa: S104 — with a token
    assert token_of(given, loopback=False)[0] == TOKEN
    with pytest.raises(ConfigError, match="no spaces"):
        token_of(Serving("x.db", "127.0.0.1", 0, "a b" * 10), loopback=True)


def test_where_a_given_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(" from-the-file-of-the-option \n")
    (tmp_path / "other").write_text("from-the-file-of-the-config")
    plain = settings_from({"web": {"token": "from-the-configuration"}}, "test")
    named = settings_from({"web": {"token_file": str(tmp_path / "other")}}, "test")
    assert parent.token_of(plain) == "from-the-configuration"
    assert parent.token_of(named) == "from-the-file-of-the-config"
    monkeypatch.setenv("SESMO_TOKEN", "from-the-environment")
    assert parent.token_of(plain) == "from-the-environment"
    assert parent.token_of(plain, tmp_path / "token") == "from-the-file-of-the-option"


def test_a_port_that_is_let_go_is_taken(tmp_path: Path) -> None:  # noqa: ARG001
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    threading.Timer(0.7, other.close).start()
    with bind("127.0.0.1", port) as listening:
        assert listening.getsockname()[1] == port
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as busy,
        pytest.raises(UsageError, match="give another"),
        bind("127.0.0.1", busy.getsockname()[1]),
    ):
        pass


def test_the_web_process_never_imports_tensorflow(plate_db: Path) -> None:
    """Every question is asked of a server in a fresh Python, pictures too; neither TensorFlow nor Keras gets in."""
    code = """
import json, sys, threading, time
from pathlib import Path
from sesmo_live.web.server import Serving
from tests.web import live
with live(Path(sys.argv[1])) as server:
    paths = ["plates", "plates/P%3Cb%3E1", "plates/P%3Cb%3E1/wells/A01", "images/1/cells",
             "images/1/field.png?rings=true", "images/1/cells/0.png", "compounds", "models",
             "run", "incidents", "compounds/dmso"]
    found = {path: server.get("/api/v1/" + path).status for path in paths}
    found["/metrics"], found["/health"] = server.get("/metrics").status, server.get("/health").status
unwanted = ("tensorflow", "keras", "torch", "jax", "sesmo_live.service", "matplotlib")
heavy = [name for name in unwanted if name in sys.modules]
print(json.dumps([found, heavy]))
"""
    # tests.web itself wires a service to make its plate: what the server needs is looked at without it.
    code = code.replace("from tests.web import live", _LIVE)
    done = subprocess.run([sys.executable, "-c", code, plate_db], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statuses, heavy = json.loads(done.stdout)
    assert heavy == []
    assert {path: status for path, status in statuses.items() if status != 200} == {"/health": 503}  # a stall is open


_LIVE = """
import importlib.util, types
for name in ("sesmo_live.service", "tests.conftest", "tests.stub"):
    stub = types.ModuleType(name); stub.__getattr__ = lambda _name: None; sys.modules[name] = stub
from tests.web import live
for name in ("sesmo_live.service",):
    del sys.modules[name]
"""


def test_a_server_without_a_database_beside_it_changes_nothing(plate_db: Path) -> None:
    with live(plate_db, token="") as server:
        assert server.write("POST", "/api/v1/retry", {"everything": True}).status == 401
        token = (plate_db.parent / "s.db.token").read_text().strip()
        done = server.send("POST", "/api/v1/retry", {"everything": True}, Authorization=f"Bearer {token}")
        assert done.json == {"images": 1}
