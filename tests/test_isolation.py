"""Decoders in processes of their own: what they return, and what becomes of those that die, hang or swell."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

from acquisition.completeness import check_complete
from acquisition.isolation import Isolated
from acquisition.ndtiff import INDEX_NAME, ndtiff_pages, ndtiff_pixels
from acquisition.tiff import read_pages, read_pixels
from acquisition.zeros import check_zero_tail
from sesmo_live.errors import ImageError, IncompleteImageError, ZeroTailError
from tests.figures import figure

RNG = np.random.default_rng(5)
ROOT = Path(__file__).parents[1]


def process_of(path: Path) -> int:  # noqa: ARG001 every function takes its file first
    return os.getpid()


def die(path: Path, number: int) -> None:  # noqa: ARG001
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(path: Path) -> None:  # noqa: ARG001
    os._exit(7)


def sleep(path: Path, seconds: float) -> int:
    path.write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def swell(path: Path, mebibytes: int) -> int:  # noqa: ARG001
    return len(np.ones(mebibytes * 2**20, np.uint8))


def bring_back(path: Path, mebibytes: int) -> bytes:  # noqa: ARG001
    return bytes(mebibytes * 2**20)


def modules(path: Path) -> list[str]:  # noqa: ARG001
    return sorted(sys.modules)


def share_answers_late(path: Path) -> None:
    raise TimeoutError(110, "Connection timed out", str(path))


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with Isolated(workers=2, timeout_s=3, memory_mb=400) as pool:
        yield pool


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "B03 f01.tif"
    tifffile.imwrite(path, RNG.integers(1, 60_000, (3, 70, 90), dtype=np.uint16), photometric="minisblack")
    return path


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_files_are_read_as_without_it(isolated: Isolated, image: Path) -> None:
    assert isolated.call(check_complete, image) == 3
    assert isolated.call(read_pages, image) == read_pages(image)
    assert isolated.call(read_pages, image, growing=True) == read_pages(image)[:2]
    pixels = isolated.call(read_pixels, image, 2)
    np.testing.assert_array_equal(pixels, read_pixels(image, 2))
    assert pixels.flags.writeable
    assert isolated.call(process_of, image) != os.getpid()


def test_ndtiff_is_read_as_without_it(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\nfrom ndstorage import NDTiffDataset\n"
        "w = NDTiffDataset(sys.argv[1], name='run', summary_metadata={}, writable=True)\n"
        "for t in range(3):\n    w.put_image({'time': t}, np.full((20, 30), 100 + t, np.uint16), {})\n"
        "w.finish(); w.close()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, timeout=60)
    (folder,) = (path.parent for path in tmp_path.rglob(INDEX_NAME))
    with Isolated(workers=1, memory_mb=1024) as pool:  # ndstorage brings dask, 1.5 s and 300 MiB
        infos = pool.call(ndtiff_pages, folder)
        assert [info.timepoint for info in infos] == [0, 1, 2]
        assert pool.call(ndtiff_pages, folder, 1) == infos[1:]
        np.testing.assert_array_equal(pool.call(ndtiff_pixels, folder, 1), np.full((20, 30), 101))
        with pytest.raises(ImageError, match="has 3 images and no image 9"):
            pool.call(ndtiff_pixels, folder, 9)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"no picture at all", ImageError, "is not a TIFF whatever its name says; export it as TIFF"),
        (b"II*\0", IncompleteImageError, "it is read again"),
    ],
)
def test_our_errors_come_through(
    isolated: Isolated, tmp_path: Path, data: bytes, error: type[ImageError], words: str
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"a\.tif .*{words}") as caught:
        isolated.call(read_pixels, path)
    assert type(caught.value) is error


def test_zero_tails_come_through(isolated: Isolated, image: Path) -> None:
    tifffile.imwrite(image, np.zeros((9, 9), np.uint16), metadata=None)
    with pytest.raises(ZeroTailError, match=r"f01\.tif has zeros .*; .* set black_edges = true"):
        isolated.call(check_zero_tail, image)


def test_errors_of_programming_stay_what_they_are(isolated: Isolated, image: Path) -> None:
    with pytest.raises(TypeError):
        isolated.call(read_pixels, image, "one")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_dies_fails_its_image_only(isolated: Isolated, image: Path, number: int) -> None:
    with pytest.raises(ImageError, match=rf"f01\.tif .*its decoder died \(signal {int(number)}\); export it") as caught:
        isolated.call(die, image, number)
    assert type(caught.value) is ImageError
    assert isolated.call(check_complete, image) == 3


def test_a_decoder_that_leaves_fails_its_image_only(isolated: Isolated, image: Path) -> None:
    with pytest.raises(ImageError, match=r"its decoder died \(exit code 7\)"):
        isolated.call(leave, image)
    assert isolated.call(check_complete, image) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM of others")
def test_a_decoder_that_is_told_to_stop_blames_no_image(isolated: Isolated, image: Path) -> None:
    with pytest.raises(IncompleteImageError, match="was told to stop; it is read again"):
        isolated.call(die, image, signal.SIGTERM)


def test_a_decoder_that_hangs_is_ended(isolated: Isolated, tmp_path: Path) -> None:
    path = tmp_path / "slow.tif"
    isolated.call(process_of, path)  # its beginning is not timed
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"slow\.tif took longer than 3 s to read; export it again or raise timeout_s"):
        isolated.call(sleep, path, 60)
    assert time.monotonic() - started < 10
    assert gone(int(path.read_text()), 2)
    assert isolated.call(process_of, path) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limit")
def test_a_decoder_that_swells_is_refused(isolated: Isolated, image: Path) -> None:
    assert isolated.call(swell, image, 200) == 200 * 2**20
    with pytest.raises(ImageError, match=r"f01\.tif needed more than 400 MiB to read; .* raise memory_mb"):
        isolated.call(swell, image, 500)
    tifffile.imwrite(image, shape=(16_000, 15_000), dtype=np.uint16)  # a hole, which takes no room on the disk
    with pytest.raises(ImageError, match="needed more than 400 MiB"):
        isolated.call(read_pixels, image)
    with pytest.raises(ImageError, match="needed more than 400 MiB"):
        isolated.call(bring_back, image, 300)  # fits once, not on its way
    assert isolated.call(swell, image, 200) == 200 * 2**20


def test_a_share_that_answers_late_blames_no_image(isolated: Isolated, image: Path) -> None:
    with pytest.raises(IncompleteImageError, match=r"cannot be read now .*timed out"):
        isolated.call(share_answers_late, image)


def test_many_threads_at_once_each_get_their_own(isolated: Isolated, tmp_path: Path) -> None:
    images = RNG.integers(1, 60_000, (24, 60, 80), dtype=np.uint16)
    paths = [tmp_path / f"{number}.tif" for number in range(24)]
    for path, pixels in zip(paths, images, strict=True):
        tifffile.imwrite(path, pixels)

    def read(number: int) -> str:
        try:
            if number % 24 == 5:
                isolated.call(leave, paths[number % 24])
            pixels = isolated.call(read_pixels, paths[number % 24])
        except ImageError as error:
            return str(error)
        return "right" if np.array_equal(pixels, images[number % 24]) else "wrong"

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(read, range(96)))
    assert answers.count("right") == 92
    died = [number for number, answer in enumerate(answers) if "decoder died" in answer]
    assert died == [number for number in range(96) if number % 24 == 5]
    assert all(str(paths[number % 24]) in answers[number] for number in died)


def test_one_that_died_while_idle_is_replaced(isolated: Isolated, image: Path) -> None:
    pid = isolated.call(process_of, image)
    psutil.Process(pid).kill()
    assert gone(pid, 5)
    time.sleep(0.5)  # let the pool notice and break
    assert isolated.call(process_of, image) != pid


def test_processes_are_lazy_and_recycled(image: Path) -> None:
    before = set(psutil.Process().children())
    with Isolated(workers=2, max_tasks=3) as pool:
        assert set(psutil.Process().children()) == before
        pids = [pool.call(process_of, image) for _ in range(7)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    assert gone(pids[-1], 5)
    with pytest.raises(IncompleteImageError, match="is not read any more, as the run ends"):
        pool.call(process_of, image)


def run_parent(folder: Path, lines: str, *how: str) -> "subprocess.Popen[str]":
    """Run a parent whose main module loads the service, unguarded, and then does `lines` with `pool` and `path`."""
    (folder / "parent.py").write_text(
        "import sys\nif __name__ == '__mp_main__':\n    raise SystemExit('the main module was loaded again')\n"
        "import sesmo_live.ingest\nfrom pathlib import Path\nfrom acquisition.isolation import Isolated\n"
        "from tests import test_isolation as t\npool, path = Isolated(workers=1), Path(sys.argv[-1])\n" + lines
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.Popen(
        [sys.executable, *(how or (str(folder / "parent.py"),)), str(folder / "file")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("how", [(), ("-m", "parent")], ids=["script", "module"])
def test_a_worker_loads_neither_the_main_module_nor_heavy_ones(tmp_path: Path, how: tuple[str, ...]) -> None:
    lines = "from acquisition.tiff import read_pixels\nprint(*pool.call(t.modules, path))\npool.close()\n"
    out, errors = run_parent(tmp_path, lines, *how).communicate(timeout=60)
    loaded = set(out.split())
    assert "acquisition.tiff" in loaded, errors
    assert not {name for name in loaded if name.startswith(("tensorflow", "keras", "sesmo_live.", "sqlalchemy"))} - {
        "sesmo_live.errors",
        "sesmo_live.records",
        "sesmo_live.wells",
    }
    assert not errors


def busy(folder: Path, parent: "subprocess.Popen[str]") -> int:
    """Return the process that reads for `parent`, once it is at work."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (folder / "file").exists() and (text := (folder / "file").read_text()):
            return int(text)
        time.sleep(0.02)
    parent.kill()
    raise AssertionError(parent.communicate()[1])


def test_a_worker_dies_with_its_parent_even_at_work(tmp_path: Path) -> None:
    parent = run_parent(tmp_path, "pool.call(t.sleep, path, 60)\n")
    pid = busy(tmp_path, parent)
    parent.kill()
    parent.communicate()
    started = time.monotonic()
    assert gone(pid, 10)
    figure(f"worker ended {time.monotonic() - started:.2f} s after its parent")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")
def test_ctrl_c_reaches_the_parent_only(tmp_path: Path) -> None:
    lines = (
        "import signal\nhits = []\nsignal.signal(signal.SIGINT, lambda *_: hits.append(1))\n"
        "pid = pool.call(t.sleep, path, 1.5)\nprint(len(hits) > 0, pid)\npool.close()\n"
    )
    parent = run_parent(tmp_path, lines)
    deadline, sent = time.monotonic() + 30, 0
    while parent.poll() is None and time.monotonic() < deadline:  # while it begins, works and ends
        if psutil.Process(parent.pid).children(recursive=True):
            os.killpg(parent.pid, signal.SIGINT)
            sent += 1
        time.sleep(0.02)
    out, errors = parent.communicate(timeout=30)
    assert out.split() == ["True", (tmp_path / "file").read_text()], (sent, errors)
    assert errors == ""


def test_what_it_costs(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RNG.integers(1, 60_000, (2048, 2048), dtype=np.uint16))

    def took(begin: float) -> float:
        return (time.perf_counter() - begin) * 1e3

    with Isolated(workers=1) as pool:
        begin = time.perf_counter()
        pool.call(process_of, path)
        first = took(begin)
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            pool.call(read_pixels, path)
            times.append(took(begin))
        plain = []
        for _ in range(15):
            begin = time.perf_counter()
            read_pixels(path)
            plain.append(took(begin))
    each = float(np.median(times) - np.median(plain))
    figure(f"isolation: {first:.0f} ms to begin, {each:.1f} ms more for each 2048² uint16")
    assert first < 20_000
    assert each < 500
