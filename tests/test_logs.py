"""The log file rotates within its size, and neither a full disk nor a refused rename takes the service down."""

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sesmo_live import logs
from sesmo_live.errors import UsageError
from sesmo_live.logs import start_logging
from tests.figures import figure

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (INFO|WARNING|ERROR) [a-z_.]+: .+")
log = logging.getLogger("sesmo_live.service")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give the process its logging back as it was."""
    root = logging.getLogger()
    handlers, raising = list(root.handlers), logging.raiseExceptions
    filters = {handler: list(handler.filters) for handler in handlers}
    levels = {name: logging.getLogger(name).level for name in ("acquisition", "db", "models", "sesmo_live")}
    logging.getLogger("sesmo_live").setLevel(logging.INFO)  # as the command line does
    yield
    start_logging(None, 1, 1)
    logging.raiseExceptions = raising
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for handler in handlers:
        handler.filters = filters[handler]


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_a_line_has_time_zone_level_and_logger(tmp_path: Path) -> None:
    start_logging(tmp_path / "sesmo.log", 1, 3)
    log.info("plate %s is watched, 0.65 µm per pixel", "P7")
    logging.getLogger("acquisition.folder").info("scanned every 5 s")
    logging.getLogger("PIL").info("not ours")
    found = lines(tmp_path / "sesmo.log")
    assert [line.split(" ", 2)[1:] for line in found] == [
        ["INFO", "sesmo_live.service: plate P7 is watched, 0.65 µm per pixel"],
        ["INFO", "acquisition.folder: scanned every 5 s"],
    ]
    assert all(LINE.fullmatch(line) for line in found)


def test_the_terminal_stays_as_it_was(tmp_path: Path) -> None:
    class Terminal(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.said.append(self.format(record))

    terminal = Terminal()
    logging.getLogger().addHandler(terminal)
    try:
        start_logging(tmp_path / "sesmo.log", 1, 3)
        log.info("ours")
        logging.getLogger("acquisition.folder").info("only for the file")
        logging.getLogger("acquisition.folder").warning("cannot be read")
    finally:
        logging.getLogger().removeHandler(terminal)
    assert terminal.said == ["ours", "cannot be read"]
    assert len(lines(tmp_path / "sesmo.log")) == 3


def test_rotation_keeps_so_many_files_of_that_size(tmp_path: Path) -> None:
    start_logging(tmp_path / "sesmo.log", 0.02, 3)
    for number in range(2000):
        log.info("image %06d of plate µ%s", number, "ä" * 40)  # two bytes a sign: size is counted in bytes
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["sesmo.log", "sesmo.log.1", "sesmo.log.2", "sesmo.log.3"]
    assert all(file.stat().st_size <= 20_000 for file in files)
    numbers = [int(line.split("image ")[1][:6]) for file in reversed(files) for line in lines(file)]
    assert numbers == list(range(2000 - len(numbers), 2000))  # none lost, none twice at the seams
    figure(f"log: 4 files of at most {max(file.stat().st_size for file in files)} of 20000 bytes")


def test_many_threads_lose_no_line(tmp_path: Path) -> None:
    start_logging(tmp_path / "sesmo.log", 0.01, 100)

    def talk(name: int) -> None:
        for number in range(200):
            log.info("thread %d says %d", name, number)

    threads = [threading.Thread(target=talk, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [line.split(": ")[1] for file in tmp_path.iterdir() for line in lines(file)]
    assert sorted(said) == sorted(f"thread {a} says {b}" for a in range(6) for b in range(200))


def test_a_full_disk_is_survived_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sesmo.log"
    file.symlink_to("/dev/full")  # every write there fails as on a full disk
    start_logging(file, 1, 3)
    for number in range(50):
        log.warning("image %d failed", number)
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "No space left" in said
    assert "Traceback" not in said
    file.unlink()  # there is room again
    log.warning("image 50 failed")
    assert [line.split(": ")[1] for line in lines(file)] == ["image 50 failed"]


def test_a_refused_rotation_costs_no_line_and_no_old_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_logging(tmp_path / "sesmo.log", 0.001, 2)
    for number in range(60):
        log.info("early %d", number)
    old = {name: (tmp_path / name).read_bytes() for name in ("sesmo.log.1", "sesmo.log.2")}
    (tmp_path / "sesmo.log.full").mkdir()  # the first rename fails, as on Windows when the file is open elsewhere
    monkeypatch.setattr(logs, "RETRY_S", 0.0)  # so that each message tries anew
    for number in range(60):
        log.info("late %d", number)
    assert {name: (tmp_path / name).read_bytes() for name in old} == old
    late = [line.split(": ")[1] for line in lines(tmp_path / "sesmo.log") if "late" in line]
    assert late == [f"late {number}" for number in range(60)]
    assert capsys.readouterr().err.count("cannot be rotated") == 1
    (tmp_path / "sesmo.log.full").rmdir()
    log.info("at last")
    assert len(lines(tmp_path / "sesmo.log")) == 1
    assert "late 59" in lines(tmp_path / "sesmo.log.1")[-1]


def test_a_rotation_that_fails_half_way_costs_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RETRY_S", 0.0)
    start_logging(tmp_path / "sesmo.log", 0.001, 2)
    (tmp_path / "sesmo.log.2").mkdir()  # an old file cannot be pushed on
    for number in range(100):
        log.info("line %d", number)
    said = [line.split(": ")[1] for name in ("sesmo.log.1", "sesmo.log") for line in lines(tmp_path / name)]
    assert said == [f"line {number}" for number in range(100)]


def test_names_of_files_cannot_forge_a_line(tmp_path: Path) -> None:
    start_logging(tmp_path / "sesmo.log", 1, 3)
    log.info("%s failed", "A01\n2026-01-01T00:00:00.000+00:00 ERROR forged: \x1b[31mred\udcff.tif")
    (only,) = lines(tmp_path / "sesmo.log")
    assert LINE.fullmatch(only)
    assert "A01\\x0a2026" in only
    assert "\\x1b[31mred\\udcff.tif" in only


def test_passwords_in_urls_stay_out(tmp_path: Path) -> None:
    start_logging(tmp_path / "sesmo.log", 1, 3)
    try:
        raise ConnectionError("mailtos://lab:hunter2@mail.example.org refused")
    except ConnectionError:
        log.exception("postgresql://sesmo:hunter2@db.example.org/live is away")
    text = (tmp_path / "sesmo.log").read_text(encoding="utf-8")
    assert "hunter2" not in text
    assert text.count("://***@") == 3
    assert "db.example.org/live" in text


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sesmo\.log cannot be opened \(No such file.*\[logging\]"):
        start_logging(tmp_path / "nowhere" / "sesmo.log", 1, 3)


def test_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    start_logging(tmp_path / "one.log", 1, 3)
    start_logging(tmp_path / "two.log", 1, 3)
    log.info("hello")
    assert lines(tmp_path / "one.log") == []
    assert len(lines(tmp_path / "two.log")) == 1
