"""The doctor finds what is planted, goes on after a check that fails, and changes nothing."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer
from sqlalchemy import insert, text
from typer.testing import CliRunner

from acquisition.layouts import image_name
from db.care import upgrade
from db.engine import open_engine, utc_now
from db.folders import beat, start_watching
from db.ledger import insert_images
from db.schema import Plate
from sesmo_live import doctor
from sesmo_live.cli.doctor import doctor as command
from sesmo_live.config import Database, Settings, settings_from
from sesmo_live.doctor import Check, examine
from sesmo_live.doctor.database import last_rate
from sesmo_live.doctor.findings import Findings
from sesmo_live.records import Site
from tests.conftest import write_image
from tests.figures import figure

APPRISE = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
"""Loading all of Apprise's services imports an old module of the standard library."""
BEGAN = datetime(2026, 11, 1, 18, tzinfo=UTC)


def write_ledger(db: Path, folder: Path, wells: int = 24, rounds: int = 10, size: int = 1_000_000) -> None:
    """Enter a run of one image a well and hour, and look at it as the daemon does."""
    upgrade(db)
    with open_engine(db, write=True).begin() as connection:
        values = {"name": "P7", "key": "p7", "run": "1", "channels": {}, "planes": [], "created_at": utc_now()}
        connection.execute(insert(Plate), [values])
        row = {"page": 0, "plate_id": 1, "size": size, "mtime_ns": 1, "state": "pending", "reason": "waiting"}
        rows = [
            {
                **row,
                "path": str(folder / f"{well}_{hour}.tif"),
                "name": f"{well}_{hour}.tif",
                "timepoint": hour,
                "acquired_at": BEGAN + timedelta(hours=hour, seconds=10 * well),
                "seen_at": BEGAN + timedelta(hours=hour),
            }
            for hour in range(rounds)
            for well in range(wells)
        ]
        insert_images(connection, rows)


def plans(folder: Path, db: Path, model: Path, **watch: object) -> Settings:
    data = {
        "database": {"url": str(db)},
        "scoring": {"model": str(model)},
        "watch": [{"folder": folder, "timezone": "Europe/Berlin", **watch}],
    }
    return settings_from(data, "test")


def named(findings: list[Check], name: str) -> Check:
    (only,) = [finding for finding in findings if finding.name.startswith(name)]
    return only


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of three images with names of a known layout."""
    for well in ("A01", "A02", "B03"):
        write_image(Path(tmp_path / "plate" / image_name("sesmo", Site("P7", well, field=1, timepoint=0))))
    return tmp_path / "plate"


def invoke(*arguments: str) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout


def test_a_sound_evening_has_no_failure_and_is_left_as_it_is(images: Path, tmp_path: Path, stub_model: Path) -> None:
    db = tmp_path / "db" / "sesmo.db"
    db.parent.mkdir()
    write_ledger(db, images)

    def state() -> dict[str, tuple[int, str]]:
        """Return what lies there; SQLite's shared memory, and a log without a word in it, are traces of reading."""
        files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.endswith("-shm")]
        files = [file for file in files if not (file.name.endswith("-wal") and file.stat().st_size == 0)]
        return {str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}

    before = state()
    findings = examine(plans(images, db, stub_model))
    assert [finding for finding in findings if finding.state == "fail"] == []
    assert state() == before
    assert named(findings, "folder").found.startswith("3 images")
    assert "3 of 3 names are known" in named(findings, "layout").found
    assert "240 images (240 pending)" in next(finding.found for finding in findings if finding.name == "database")
    assert named(findings, "model").state == "ok"


def test_tensorflow_is_not_loaded(images: Path, tmp_path: Path, stub_model: Path) -> None:
    code = (
        "import sys; from sesmo_live.doctor import examine; from sesmo_live.config import settings_from\n"
        f"examine(settings_from({{'database': {{'url': {str(tmp_path / 'x.db')!r}}}, 'scoring': "
        f"{{'model': {str(stub_model)!r}}}, 'watch': [{{'folder': {str(images)!r}}}]}}, 'test'))\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figure(f"doctor: {time.monotonic() - began:.1f} s")


@pytest.mark.timeout(240)
def test_tensorflow_is_asked_in_a_process_of_its_own() -> None:
    (found,) = doctor.computer.check_gpu(ask_tensorflow=True)
    assert found.found.startswith("TensorFlow ")
    assert found.state in ("ok", "warn")


def test_a_wrong_configuration_is_one_line_and_the_rest_goes_on(tmp_path: Path, images: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[watching]\nsetle_s = 1\n", encoding="utf-8")
    code, said = invoke("--config", str(config), "--db", str(tmp_path / "x.db"), "--watch", str(images))
    assert code == 1
    assert "fail  configuration" in said
    assert "-> did you mean 'settle_s'?" in said
    assert "3 images" in said
    assert "not there yet" in said


def test_json_is_json_alone(tmp_path: Path, images: Path) -> None:
    code, said = invoke("--db", str(tmp_path / "x.db"), "--watch", str(images), "--format", "json")
    assert code == 0
    rows = json.loads(said)
    assert set(rows[0]) == {"name", "state", "found", "remedy"}
    assert {row["state"] for row in rows} <= {"ok", "warn"}
    assert invoke("--db", str(tmp_path / "x.db"), "--format", "csv")[1].startswith("name,state,found,remedy\n")


def test_a_folder_that_is_not_there(tmp_path: Path, stub_model: Path) -> None:
    found = named(examine(plans(tmp_path / "nowhere", tmp_path / "x.db", stub_model)), "folder")
    assert (found.state, found.found) == ("fail", "it is not there")


@pytest.mark.parametrize(("unknown", "state"), [(["scan one.tif"], "warn"), (None, "fail")])
def test_names_that_no_layout_knows(
    unknown: list[str] | None, state: str, images: Path, tmp_path: Path, stub_model: Path
) -> None:
    if unknown is None:
        for file in list(images.rglob("*.tif")):
            file.rename(file.with_name(f"holiday {file.stat().st_ino}.tif"))
    for name in unknown or []:
        write_image(images / name)
    found = named(examine(plans(images, tmp_path / "x.db", stub_model)), "layout")
    assert found.state == state
    assert (unknown or ["holiday"])[0] in found.found


def test_names_that_hold_anything_are_printed(tmp_path: Path) -> None:
    (tmp_path / "plate").mkdir()
    for name in (b"two\nlines.tif", b"bad\xff.tif", b"\x1b[31mred.tif"):
        (tmp_path / "plate" / os.fsdecode(name)).write_bytes(b"II")
    _, said = invoke("--db", str(tmp_path / "x.db"), "--watch", str(tmp_path / "plate"))
    assert "layout" in said
    assert "\x1b" not in said
    assert "two\nlines" not in said


def test_a_tampered_model_fails(images: Path, tmp_path: Path, stub_model: Path) -> None:
    model = shutil.copytree(stub_model, tmp_path / "model")
    with (model / "weights.safetensors").open("ab") as weights:
        weights.write(b"x")
    found = named(examine(plans(images, tmp_path / "x.db", model)), "model")
    assert (found.state, "hash" in found.found) == ("fail", True)


def test_the_demonstration_model_is_a_warning(images: Path, tmp_path: Path) -> None:
    settings = settings_from({"database": {"url": str(tmp_path / "x.db")}, "watch": [{"folder": images}]}, "test")
    assert named(examine(settings), "model").state == "warn"


def test_the_rate_is_that_of_the_last_run(tmp_path: Path, images: Path) -> None:
    write_ledger(tmp_path / "sesmo.db", images)
    with open_engine(tmp_path / "sesmo.db").connect() as connection:
        rate = last_rate(connection, images)
        assert rate is not None
        assert rate.images_per_h == pytest.approx(24, rel=0.01)
        assert rate.bytes_per_h == pytest.approx(24e6, rel=0.01)
        assert last_rate(connection, tmp_path / "elsewhere") is None
    assert rate.frame_interval_s == pytest.approx(3600, rel=0.01)


def test_a_plan_that_does_not_fit_on_the_disk_is_a_warning(tmp_path: Path, images: Path, stub_model: Path) -> None:
    write_ledger(tmp_path / "sesmo.db", images)
    fits = named(examine(plans(images, tmp_path / "sesmo.db", stub_model, timepoints=2)), "disk")
    assert "at the rate of the last run" in fits.found
    assert fits.state == ("ok" if shutil.disk_usage(tmp_path).free > 5e9 else "warn")
    large = named(examine(plans(images, tmp_path / "sesmo.db", stub_model, timepoints=10**9)), "disk")
    assert (large.state, "h are needed" in large.found) == ("warn", True)


def test_without_a_ledger_the_images_tell_the_rate(tmp_path: Path, images: Path, stub_model: Path) -> None:
    for number, file in enumerate(sorted(images.rglob("*.tif"))):
        os.utime(file, (BEGAN.timestamp() + 1800 * number,) * 2)
    found = named(examine(plans(images, tmp_path / "x.db", stub_model)), "disk").found
    assert "the images that lie there" in found
    size = sum(file.stat().st_size for file in list(images.rglob("*.tif")))
    assert f"({size / 1.5 / 1e6:.1f} MB/h)" in found  # three images, half an hour each


def test_a_time_in_the_future_is_a_warning(tmp_path: Path, images: Path, stub_model: Path) -> None:
    late = time.time() + 7200
    os.utime(next(images.rglob("*.tif")), (late, late))
    found = named(examine(plans(images, tmp_path / "x.db", stub_model)), "clock")
    assert (found.state, "the newest file" in found.found) == ("warn", True)


def test_a_damaged_database_fails(tmp_path: Path, images: Path, stub_model: Path) -> None:
    db = tmp_path / "sesmo.db"
    write_ledger(db, images)
    with sqlite3.connect(db) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(db.read_bytes())
    for start in range(8192, len(content), 4096):
        content[start : start + 200] = b"\xa5" * 200
    db.write_bytes(content)
    findings = examine(plans(images, db, stub_model))
    assert any(finding.state == "fail" and finding.name.startswith("database") for finding in findings)
    others = [finding for finding in findings if not finding.name.startswith("database")]
    assert {finding.name.split()[0] for finding in others} >= {"disk", "clock", "alerts"}
    assert "fail" not in {finding.state for finding in others}  # the rest went on, and said it once


def test_what_is_no_database_fails(tmp_path: Path, images: Path, stub_model: Path) -> None:
    (tmp_path / "sesmo.db").write_text("hello " * 1000, encoding="utf-8")
    findings = examine(plans(images, tmp_path / "sesmo.db", stub_model))
    assert any(finding.state == "fail" and finding.name == "database" for finding in findings)


def test_what_is_no_url_fails(images: Path, stub_model: Path) -> None:
    findings = examine(plans(images, Path(), stub_model).model_copy(update={"database": Database(url="://")}))
    failed = [(finding.name, finding.remedy) for finding in findings if finding.state == "fail"]
    assert failed == [("database", "give a file such as sesmo.db, or a URL such as postgresql://user@server/sesmo")]


@pytest.mark.parametrize(("revision", "state"), [("0003", "warn"), ("9999", "fail")])
def test_another_schema(revision: str, state: str, tmp_path: Path, images: Path, stub_model: Path) -> None:
    write_ledger(tmp_path / "sesmo.db", images)
    with open_engine(tmp_path / "sesmo.db", write=True).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :number"), {"number": revision})
    findings = examine(plans(images, tmp_path / "sesmo.db", stub_model))
    assert [finding.state for finding in findings if finding.name == "database"] == [state]


@contextmanager
def daemon_on(db: Path) -> Iterator[None]:
    """Hold a database from another process, as a daemon does."""
    code = f"from db.engine import ingest_lock\nwith ingest_lock({str(db)!r}):\n  print('held', flush=True)\n  input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        try:
            yield
        finally:
            holder.kill()


def test_a_running_daemon_is_no_fault(tmp_path: Path, images: Path, stub_model: Path) -> None:
    db = tmp_path / "sesmo.db"
    write_ledger(db, images)
    with open_engine(db, write=True).begin() as connection:
        start_watching(connection, "scope", {images: ""})
        beat(connection, "scope", images, "scanned every 5 s, sooner on events", "", utc_now())
    with daemon_on(db):
        found = named(examine(plans(images, db, stub_model)), "daemon")
        assert found.state == "ok"
        assert "sooner on events" in found.found
        with open_engine(db, write=True).begin() as connection:
            beat(connection, "scope", images, "polling", "the share is gone", None)
        found = named(examine(plans(images, db, stub_model)), "daemon")
        assert (found.state, "the share is gone" in found.found) == ("warn", True)
        with open_engine(db, write=True).begin() as connection:
            beat(connection, "scope", images, "polling", "", None)
            old = utc_now() - timedelta(minutes=20)
            connection.execute(text("UPDATE watched_folder SET beat_at = :old"), {"old": old.replace(tzinfo=None)})
        found = named(examine(plans(images, db, stub_model)), "daemon")
        assert (found.state, "20 min ago" in found.found) == ("warn", True)
    found = named(examine(plans(images, db, stub_model)), "daemon")
    assert (found.state, "gone without a word" in found.found) == ("warn", True)


def test_the_doctor_keeps_no_lock(tmp_path: Path, images: Path, stub_model: Path) -> None:
    db = tmp_path / "sesmo.db"
    write_ledger(db, images)
    with daemon_on(db):
        pass
    assert "is not running" in named(examine(plans(images, db, stub_model)), "daemon").found
    with daemon_on(db):
        assert "is running" in named(examine(plans(images, db, stub_model)), "daemon").found


def test_a_check_that_stumbles_or_hangs_is_a_finding(
    tmp_path: Path, images: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def stumble(*_: object) -> Findings:
        yield Check("log file", "ok", "so far so good")
        raise ZeroDivisionError("surprise")

    def hang(*_: object, **__: object) -> Findings:
        released.wait(60)
        yield Check("alerts", "ok", "too late")

    monkeypatch.setattr(doctor.plan, "check_log", stumble)
    monkeypatch.setattr(doctor.plan, "check_alerts", hang)
    monkeypatch.setattr(doctor, "CHECK_LIMIT_S", 5.0)
    try:
        findings = examine(plans(images, tmp_path / "x.db", stub_model))
    finally:
        released.set()
    last = [(finding.state, finding.found) for finding in findings if finding.name in ("log file", "alerts")]
    assert last == [
        ("ok", "so far so good"),
        ("fail", "the check itself failed (ZeroDivisionError: surprise)"),
        ("fail", "no answer within 5 s"),
    ]


class _Receiver(BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@APPRISE
def test_a_test_message_arrives() -> None:
    _Receiver.bodies = []
    with HTTPServer(("127.0.0.1", 0), _Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            (found,) = doctor.plan.check_alerts([f"json://127.0.0.1:{server.server_port}/"], send=True)
        finally:
            server.shutdown()
            thread.join()
    assert (found.state, len(_Receiver.bodies)) == ("ok", 1)
    assert b"nothing is wrong" in _Receiver.bodies[0]
    (found,) = doctor.plan.check_alerts([f"json://127.0.0.1:{server.server_port}/"], send=True)
    assert found.state == "fail"


@APPRISE
def test_a_bad_address_fails_without_its_password(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[alerts]\nurls = ["mailtoes://lab:hunter2@example.org"]\n', encoding="utf-8")
    code, said = invoke("--config", str(config))
    assert code == 1
    assert "fail  alerts" in said
    assert "did you mean mailto" in said
    assert "hunter2" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux'")
def test_watches_of_other_programs_are_counted() -> None:
    code = (
        "import ctypes, os; libc = ctypes.CDLL(None); fd = libc.inotify_init(); "
        "assert all(libc.inotify_add_watch(fd, p.encode(), 2) > 0 for p in ('/tmp', '/usr', '/var'));"
        "print('held', flush=True); input()"
    )
    before = doctor.folders._used_watches()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        during = doctor.folders._used_watches()
        holder.kill()
    assert during - before == 3
