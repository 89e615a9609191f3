"""The transfer manifest: what it promises, what it must not be able to do, and what it costs."""

import hashlib
import json
import logging
import os
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from acquisition import manifest as manifest_module
from acquisition.manifest import MANIFEST_NAME, MAX_LINE, check_manifest
from sesmo_live.errors import IncompleteImageError
from tests.figures import figure

DATA = b"pixels" * 100


def land(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def promise(folder: Path, name: str, data: bytes = DATA, *, key: str = "file", sha: bool = False, **more: Any) -> None:
    """Append one line to the manifest of `folder`, which promises `data`."""
    line: dict[str, Any] = {key: name, "size": len(data), **more}
    if sha:
        line["sha256"] = hashlib.sha256(data).hexdigest()
    append(folder, json.dumps(line).encode() + b"\n")


def append(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MANIFEST_NAME).open("ab") as handle:
        handle.write(data)


def test_without_a_manifest_nobody_vouches(tmp_path: Path) -> None:
    path = land(tmp_path / "a" / "b.tif")
    assert check_manifest(tmp_path, path) is False
    promise(tmp_path, "a/other.tif")
    assert check_manifest(tmp_path, path) is False


@pytest.mark.parametrize("key", ["file", "name", "path"])
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("plate/TimePoint_1", "a.tif"),
        ("plate", "TimePoint_1/a.tif"),
        ("plate", "TimePoint_1\\a.tif"),
        ("plate", "./TimePoint_1/./a.tif"),
        (".", "plate/TimePoint_1/a.tif"),
    ],
)
def test_it_may_lie_beside_the_file_or_above(tmp_path: Path, key: str, folder: str, name: str) -> None:
    path = land(tmp_path / "plate" / "TimePoint_1" / "a.tif")
    promise(tmp_path / folder, name, key=key, sha=True)
    assert check_manifest(tmp_path, path) is True


def test_a_manifest_above_the_root_or_beside_it_says_nothing(tmp_path: Path) -> None:
    path = land(tmp_path / "root" / "a.tif")
    promise(tmp_path, "root/a.tif", b"other")
    assert check_manifest(tmp_path / "root", path) is False
    assert check_manifest(tmp_path / "root" / "sub", path) is False
    assert check_manifest(tmp_path / "root", tmp_path / "root" / ".." / "root" / "a.tif") is False


def test_the_nearest_manifest_counts_and_the_latest_line(tmp_path: Path) -> None:
    path = land(tmp_path / "sub" / "a.tif")
    promise(tmp_path, "sub/a.tif", b"wrong")
    promise(tmp_path / "sub", "a.tif", b"wrong too")
    with pytest.raises(IncompleteImageError, match="promises 9"):
        check_manifest(tmp_path, path)
    promise(tmp_path / "sub", "a.tif")
    assert check_manifest(tmp_path, path) is True


def test_another_size_is_named_with_the_promised_one(tmp_path: Path) -> None:
    path = land(tmp_path / "a.tif", b"abc")
    promise(tmp_path, "a.tif", b"abcdef")
    with pytest.raises(IncompleteImageError, match=r"a\.tif has 3 bytes and .*jsonl promises 6; it is read again"):
        check_manifest(tmp_path, path)
    path.write_bytes(b"abcdef")
    assert check_manifest(tmp_path, path) is True


def test_another_hash_is_incomplete_until_the_bytes_are_there(tmp_path: Path) -> None:
    """A copy that sets the room aside first has the right size from the start; its time may be too coarse to tell."""
    path = land(tmp_path / "a.tif", bytes(len(DATA)))
    when = path.stat().st_mtime_ns
    promise(tmp_path, "a.tif", sha=True)
    assert check_manifest(tmp_path, path, hashing=False) is True
    wanted, found = hashlib.sha256(DATA).hexdigest(), hashlib.sha256(bytes(len(DATA))).hexdigest()
    with pytest.raises(IncompleteImageError, match=f"has the SHA-256 {found} and .* promises {wanted}"):
        check_manifest(tmp_path, path)
    path.write_bytes(DATA)
    os.utime(path, ns=(when, when))
    assert check_manifest(tmp_path, path) is True


def test_a_hash_that_agreed_is_not_made_again_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    real = hashlib.file_digest

    def counting(handle: Any, name: str) -> Any:
        hashed.append(1)
        return real(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    path = land(tmp_path / "a.tif")
    promise(tmp_path, "a.tif", sha=True)
    assert all(check_manifest(tmp_path, path) for _ in range(5))
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    assert check_manifest(tmp_path, path)
    assert len(hashed) == 2


def test_a_torn_last_line_is_read_once_it_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = land(tmp_path / "a.tif")
    line = json.dumps({"file": "a.tif", "size": len(DATA)}).encode()
    for piece in (line[:5], line[5:12], line[12:]):
        append(tmp_path, piece)
        assert check_manifest(tmp_path, path) is False
    append(tmp_path, b"\n")
    assert check_manifest(tmp_path, path) is True
    assert caplog.text == ""


OUTSIDE = ["../a.tif", "sub/../../a.tif", "/a.tif", "\\a.tif", "C:\\a.tif", "C:a.tif", "\\\\srv\\s\\a.tif", "a\0.tif"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_outside_its_folder_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path, inner = land(tmp_path / "a.tif"), land(tmp_path / "sub" / "a.tif")
    promise(tmp_path / "sub", name, b"something else")
    for _ in range(3):
        assert check_manifest(tmp_path, path) is False
        assert check_manifest(tmp_path, inner) is False
    assert caplog.text.count("lies outside its folder") == 1
    assert "line 1 of" in caplog.text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"not json", "Expecting value"),
        (b'{"file": "a.tif", "size": 600', "delimiter"),
        (b"[1, 2]", "it is no JSON object"),
        (b'{"size": 600}', "it names no file"),
        (b'{"file": "", "size": 600}', "it names no file"),
        (b'{"file": ".", "size": 600}', "it names no file"),
        (b'{"file": ["a.tif"], "size": 600}', "it names no file"),
        (b'{"file": "a.tif"}', "its size is not a number of bytes"),
        (b'{"file": "a.tif", "size": true}', "its size is not a number of bytes"),
        (b'{"file": "a.tif", "size": -1}', "its size is not a number of bytes"),
        (b'{"file": "a.tif", "size": 6e2}', "its size is not a number of bytes"),
        (b'{"file": "a.tif", "size": 1' + b"0" * 4000 + b"}", "its size is not a number of bytes"),
        (b'{"file": "a.tif", "size": 1' + b"0" * 60_000 + b"}", "digits"),
        (b'{"file": "a.tif", "size": 1, "sha256": "abc"}', "its sha256 is not 64 hexadecimal digits"),
        (b'{"file": "a\xff.tif", "size": 1}', "decode"),
        (b"[" * 60_000, "recursion"),
        (b'{"file": "a.tif", "size": 1, "more": "' + b"x" * MAX_LINE + b'"}', f"longer than {MAX_LINE} bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_line_is_warned_of_once_and_the_next_one_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes, why: str
) -> None:
    path = land(tmp_path / "a.tif")
    append(tmp_path, b"\n" + line + b"\r\n")
    for _ in range(3):
        assert check_manifest(tmp_path, path) is False
    assert caplog.text.count("is passed over") == 1
    assert "line 2 of" in caplog.text
    assert why in caplog.text
    promise(tmp_path, "a.tif", sha=True)
    assert check_manifest(tmp_path, path) is True


def test_a_file_full_of_bad_lines_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = land(tmp_path / "a.tif")
    append(tmp_path, b"nonsense\n" * 5000)
    promise(tmp_path, "a.tif")
    assert check_manifest(tmp_path, path) is True
    assert caplog.text.count("is passed over") == manifest_module.MAX_WARNINGS
    assert caplog.text.count("no more of its lines are reported") == 1


@pytest.mark.alone
def test_a_line_without_end_costs_neither_memory_nor_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = land(tmp_path / "a.tif")
    with (tmp_path / MANIFEST_NAME).open("wb") as handle:
        handle.truncate(200_000_000)
    tracemalloc.start()
    try:
        began = time.perf_counter()
        assert check_manifest(tmp_path, path) is False
        peak = tracemalloc.get_traced_memory()[1]
        took = time.perf_counter() - began
    finally:
        tracemalloc.stop()
    began = time.perf_counter()
    append(tmp_path, b"and it goes on")
    assert check_manifest(tmp_path, path) is False
    again = time.perf_counter() - began
    append(tmp_path, b"\n")
    promise(tmp_path, "a.tif")
    assert check_manifest(tmp_path, path) is True
    assert "longer than" in caplog.text
    figure(f"a line of 200 MB: {took:.2f} s, then {again:.4f} s, {peak / 1e6:.1f} MB of memory")
    assert peak < 20_000_000
    assert again < 0.5


def test_memory_is_bounded_and_the_latest_promises_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MEMORY_BYTES", 1_000_000)
    for number in range(8):
        folder = tmp_path / f"plate{number}"
        name = "x" * 2000
        for line in range(1000):
            promise(folder, f"{line}{name}")
        promise(folder, "a.tif")
        assert check_manifest(tmp_path, land(folder / "a.tif")) is True
        known = manifest_module._shelf._manifests.values()
        assert sum(len(name) for manifest in known for name in manifest.promises) < 1_000_000
    assert check_manifest(tmp_path, tmp_path / "plate0" / "a.tif") is True  # forgotten, and read again


@pytest.mark.parametrize("how", ["shorter", "another file"])
def test_a_manifest_that_was_written_anew_is_read_anew(tmp_path: Path, how: str) -> None:
    path, manifest = land(tmp_path / "a.tif"), tmp_path / MANIFEST_NAME
    promise(tmp_path, "b.tif")
    promise(tmp_path, "a.tif", b"wrong")
    with pytest.raises(IncompleteImageError):
        check_manifest(tmp_path, path)
    if how == "shorter":
        manifest.write_bytes(b"")
    else:
        (tmp_path / "new").write_bytes(manifest.read_bytes().replace(b"a.tif", b"c.tif"))
        (tmp_path / "new").replace(manifest)
    assert check_manifest(tmp_path, path) is False


def test_a_manifest_that_went_away_says_nothing_any_more(tmp_path: Path) -> None:
    path = land(tmp_path / "a.tif")
    promise(tmp_path, "a.tif")
    assert check_manifest(tmp_path, path) is True
    (tmp_path / MANIFEST_NAME).unlink()
    assert check_manifest(tmp_path, path) is False


def test_a_pipe_by_that_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    assert check_manifest(tmp_path, land(tmp_path / "a.tif")) is False


def test_a_file_that_is_promised_and_not_there_is_the_callers_to_explain(tmp_path: Path) -> None:
    promise(tmp_path, "a.tif")
    with pytest.raises(FileNotFoundError):
        check_manifest(tmp_path, tmp_path / "a.tif")


def test_accents_are_one_name_however_they_are_spelled(tmp_path: Path) -> None:
    promise(tmp_path, "Zelle_a\u0308.tif")
    assert check_manifest(tmp_path, land(tmp_path / "Zelle_ä.tif")) is True


def test_many_threads_may_ask_while_lines_are_appended(tmp_path: Path) -> None:
    names = [f"sub{number % 5}/{number}.tif" for number in range(1000)]
    for name in names:
        land(tmp_path / name, name.encode())
    vouched: list[set[str]] = [set() for _ in range(4)]
    done = threading.Event()

    def ask(seen: set[str]) -> None:
        while len(seen) < len(names) and not done.wait(0):
            for name in names:
                if check_manifest(tmp_path, tmp_path / name):  # raises if ever a line was read wrongly
                    seen.add(name)

    threads = [threading.Thread(target=ask, args=(seen,)) for seen in vouched]
    for thread in threads:
        thread.start()
    for name in names:
        promise(tmp_path, name, name.encode(), sha=True)
    for thread in threads:
        thread.join(60)
    done.set()
    assert [len(seen) for seen in vouched] == [1000] * 4


@pytest.mark.alone
def test_forty_thousand_files_are_cheap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    path = land(tmp_path / "plate" / "TimePoint_1" / "a.tif")
    lines = [json.dumps({"file": f"TimePoint_1/{n}.tif", "size": 1, "sha256": "0" * 64}) for n in range(40_000)]
    append(tmp_path / "plate", "\n".join([*lines, ""]).encode())
    promise(tmp_path / "plate", "TimePoint_1/a.tif")
    spent = time.process_time()
    assert check_manifest(tmp_path, path) is True
    first = time.process_time() - spent
    spent = time.process_time()
    for _ in range(40_000):
        check_manifest(tmp_path, path)
    later = time.process_time() - spent
    figure(f"40 000 lines read in {first:.2f} s, 40 000 files checked in {later:.2f} s")
    assert first < 3
    assert later < 6
