"""Scoring on a cluster: row for row what one machine scores, whatever dies; and what is refused before it begins."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

distributed = pytest.importorskip("distributed")

from models.detector_passport import find_detector  # noqa: E402
from models.passport import PASSPORT, WEIGHTS, find_model  # noqa: E402
from sesmo_live.cluster import alike, bundles, crew, score_on_cluster  # noqa: E402
from sesmo_live.cluster import pipeline as cluster_pipeline  # noqa: E402
from sesmo_live.errors import ClusterError, ModelError  # noqa: E402
from sesmo_live.service import Progress, score_folder  # noqa: E402
from tests import cluster_stub  # noqa: E402
from tests.cli import Sesmo, runner, sentence, write_wells  # noqa: E402
from tests.conftest import blobs, settings, write_image  # noqa: E402
from tests.test_service import rows  # noqa: E402

pytestmark = pytest.mark.usefixtures("stub_scorer")

WELLS = " ".join(f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7))


def begin(workers: int = 2, **options: Any) -> Any:
    """Begin workers in processes of their own, watched by nannies, which score with the stub."""
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
        scheduler_kwargs={"allowed_failures": 1, "dashboard": False},
        preload=["tests.cluster_stub"],
        **options,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give workers a cache folder of their own, before they begin."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "sesmo-live" / "cluster"


@pytest.fixture(scope="module")
def two_workers(cache: Path) -> Iterator[Any]:  # noqa: ARG001 — before the workers begin
    with begin() as cluster:
        yield cluster


@pytest.fixture
def address(two_workers: Any) -> str:
    """Return the scheduler of two workers, both of which are up."""
    with client(two_workers) as now:
        now.wait_for_workers(2, timeout=120)
        now.run(cluster_stub.record)
    return str(two_workers.scheduler_address)


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


def client(cluster: Any) -> Any:
    return distributed.Client(cluster.scheduler_address, set_as_default=False)


def everything(db: Path) -> list[list[Any]]:
    """Return all rows that a run writes, but for keys and times of day."""
    columns = "well, field, timepoint, image.channel, image.z, size, mtime_ns, state, reason, sha256, attempts"
    with sqlite3.connect(db) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                f"SELECT path, page, plate.name, run, {columns} FROM image "
                "LEFT JOIN plate ON plate.id = plate_id ORDER BY path, page, state",
                "SELECT path, page, idx, x, y, score FROM cell JOIN image ON id = image_id ORDER BY 1, 2, 3",
                "SELECT path, page, n, sum, sum_sq, n_over, histogram, quality FROM field_score "
                "JOIN image ON id = image_id ORDER BY 1, 2",
                "SELECT name, run, channels, planes FROM plate ORDER BY name",
            )
        ]


def write_archive(folder: Path) -> Path:
    """Write what an archive holds: wells, a stack, a blank field, a broken file, a copy."""
    write_wells(folder / "P1", WELLS)
    write_image(folder / "P2" / "A01_f1_t1_cPhase_z0.tif", 99)
    tifffile.imwrite(
        folder / "P2" / "B01_f1_t1_cPhase_z0.tif", np.stack([blobs(k) for k in range(7, 10)]), photometric="minisblack"
    )
    tifffile.imwrite(folder / "P2" / "C01_f1_t1_cPhase_z0.tif", np.full((256, 256), 130, np.uint8))
    (folder / "P2" / "D01_f1_t1_cPhase_z0.tif").write_bytes(b"not a TIFF, whatever its name says")
    return folder


def after(scored: int, act: Any) -> Any:
    """Return what takes a run's progress and acts once, when so many images are scored."""
    done: list[bool] = []

    def report(now: Progress) -> None:
        if now.scored >= scored and not done:
            done.append(True)
            act()

    return report


@pytest.mark.timeout(180)
def test_two_workers_write_what_one_machine_writes(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path, address: str, two_workers: Any, cache: Path
) -> None:
    folder = write_archive(tmp_path / "in")
    common = ("--model", stub_model, "--format", "json")
    here = sesmo("score", folder / "P1", folder / "P2", "--db", tmp_path / "one.db", *common, code=1)
    there = sesmo(
        "score", folder / "P1", folder / "P2", "--db", tmp_path / "two.db", "--dask", address, *common, code=1
    )
    assert {**json.loads(here.out), "seconds": 0} == {**json.loads(there.out), "seconds": 0}
    assert json.loads(there.out)["scored"] >= 24 + 1 + 3
    assert everything(tmp_path / "one.db") == everything(tmp_path / "two.db")
    with client(two_workers) as now:
        assert all(read for read, _ in now.run(cluster_stub.record).values()), "one worker had nothing to do"
    (kept,) = cache.iterdir()  # the model went there by its hash
    assert kept.name == bundles.read_bundle(stub_model).sha256
    assert (kept / WEIGHTS).read_bytes() == (stub_model / WEIGHTS).read_bytes()
    again = score_on_cluster(settings(folder / "P1", tmp_path / "two.db", stub_model), address)
    assert (again.progress.unchanged, again.progress.scored) == (24, 0)


@pytest.mark.timeout(180)
def test_a_worker_that_is_killed_costs_and_doubles_nothing(
    tmp_path: Path, stub_model: Path, address: str, two_workers: Any
) -> None:
    folder = write_wells(tmp_path / "in", WELLS, times=3)
    with client(two_workers) as now:
        victim = next(iter(now.run(os.getpid).values()))
    tasks: list[int] = []

    def look(progress: Progress) -> None:
        tasks.append(len(two_workers.scheduler.tasks))
        kill(progress)

    kill = after(5, lambda: os.kill(victim, signal.SIGKILL))
    summary = score_on_cluster(settings(folder, tmp_path / "two.db", stub_model), address, on_progress=look)
    assert (summary.progress.scored, summary.progress.failed, summary.progress.pending) == (72, 0, 0)
    with client(two_workers) as now:
        now.wait_for_workers(2, timeout=120)
        assert victim not in now.run(os.getpid).values()
    score_folder(settings(folder, tmp_path / "one.db", stub_model))
    assert everything(tmp_path / "one.db") == everything(tmp_path / "two.db")
    assert 0 < max(tasks) <= cluster_pipeline.A_THREAD * 2, "more images were on their way than workers can take"


@pytest.mark.timeout(400)
def test_an_image_that_kills_workers_fails_and_costs_no_other_its_score(
    sesmo: Sesmo,
    tmp_path: Path,
    stub_model: Path,
    cache: Path,  # noqa: ARG001 — before the workers begin
) -> None:
    folder = write_wells(tmp_path / "in", "A01 A02 A03 A04 A05 A06")
    lethal = write_image(folder / "B01_f666_t1_cPhase_z0.tif", 3)
    with begin() as cluster:  # its own: nannies may give up workers that die as they begin
        words = ("--db", tmp_path / "s.db", "--model", stub_model, "--dask", cluster.scheduler_address)
        done = json.loads(sesmo("score", folder, *words, "--format", "json", code=1).out)
    assert (done["scored"], done["failed"], done["pending"]) == (6, 1, 0)
    (failure,) = done["failures"]
    assert failure["path"] == str(lethal)
    assert "2 workers died of it, one after the other, while nothing else was under way" in failure["reason"]


@pytest.mark.timeout(300)
def test_where_workers_have_a_gpu_they_score_and_the_others_crop(tmp_path: Path, stub_model: Path, cache: Path) -> None:  # noqa: ARG001 — before the workers begin
    options = {"nthreads": 1, "preload": ["tests.cluster_stub"], "silence_logs": 50}
    spec = {
        "scores": {"cls": distributed.Nanny, "options": {**options, "resources": {"GPU": 1}}},
        "crops": {"cls": distributed.Nanny, "options": options},
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": "127.0.0.1:0", "dashboard": False}}
    folder = write_archive(tmp_path / "in")
    with distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=50) as cluster:
        with client(cluster) as now:
            now.wait_for_workers(2, timeout=120)
            names = {address: worker["id"] for address, worker in now.scheduler_info()["workers"].items()}
        found = score_on_cluster(settings(folder, tmp_path / "two.db", stub_model), cluster.scheduler_address)
        with client(cluster) as now:
            did = {names[address]: record for address, record in now.run(cluster_stub.record).items()}
    score_folder(settings(folder, tmp_path / "one.db", stub_model))
    assert everything(tmp_path / "one.db") == everything(tmp_path / "two.db")
    assert did["scores"][0] == []
    assert did["crops"][1] == []
    assert len(did["crops"][0]) >= found.progress.scored >= 28
    assert sum(did["scores"][1]) == found.progress.cells
    assert max(did["scores"][1]) > 30, "fields were not scored together"


@pytest.mark.timeout(400)
def test_the_command_begins_workers_here_and_scores_as_one_process_does_with_a_network(tmp_path: Path) -> None:
    """The real network and a detector that workers do not have, in the program as it is installed."""
    folder = write_wells(tmp_path / "in", "A01 A02 A03", times=2)
    detector, model = tmp_path / "detector", tmp_path / "model"
    for source, copy, change in (
        (find_detector(), detector, {"metrics": {"ours": 1}}),
        (find_model(None), model, {"cropper": "centres", "cropper_settings": {"detector": str(detector)}}),
    ):
        copy.mkdir()
        (copy / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())
        passport = json.loads((source / PASSPORT).read_bytes())
        (copy / PASSPORT).write_text(json.dumps({**passport, **change, "reference": {}}))
        if copy is detector:
            (copy / PASSPORT).write_text(json.dumps({**passport, **change}))
    for name, more in (("one", ()), ("two", ("--dask", "local:2"))):
        words = ("score", folder, "--db", tmp_path / f"{name}.db", "--model", model, "--format", "json", *more)
        done = subprocess.run(
            [sys.executable, "-c", "from sesmo_live.cli import main; main()", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=190,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["scored"] == 6
        assert "Traceback" not in done.stderr
        assert "distributed" not in done.stderr
        assert "tcp://" not in done.stderr
    one, two = everything(tmp_path / "one.db"), everything(tmp_path / "two.db")
    assert len(one[1]) > 30
    assert one == two
    kept = {path.name for path in (tmp_path / "cache" / "sesmo-live" / "cluster").iterdir()}
    assert kept == {bundles.read_bundle(folder).sha256 for folder in (detector, model)}


@pytest.mark.timeout(180)
def test_a_worker_that_lacks_the_model_when_asked_is_sent_it(
    tmp_path: Path, stub_model: Path, address: str, two_workers: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that comes from another computer, after the others were given what they lacked."""
    shutil.rmtree(cache, ignore_errors=True)
    with client(two_workers) as now:
        now.run(cluster_stub.forget)
    monkeypatch.setattr(crew.Crew, "supply", lambda *_: None)
    folder = write_wells(tmp_path / "in", WELLS)
    summary = score_on_cluster(settings(folder, tmp_path / "s.db", stub_model), address)
    assert (summary.progress.scored, summary.progress.failed) == (24, 0)
    assert [path.name for path in cache.iterdir()] == [bundles.read_bundle(stub_model).sha256]


def test_a_worker_that_keeps_no_model_ends_the_run(
    tmp_path: Path, stub_model: Path, address: str, two_workers: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object) -> None:
        pass

    shutil.rmtree(cache, ignore_errors=True)
    with client(two_workers) as now:
        now.run(cluster_stub.forget)
    monkeypatch.setattr(crew.Crew, "supply", lambda *_: None)
    monkeypatch.setattr(crew.Crew, "send", lose)
    monkeypatch.setattr(cluster_pipeline, "LOOK_S", 0.05)
    folder = write_wells(tmp_path / "in")
    with pytest.raises(ClusterError, match="does not keep the model that it was sent 3 times"):
        score_on_cluster(settings(folder, tmp_path / "s.db", stub_model), address)


def test_a_scheduler_that_goes_away_while_the_run_begins_is_named(
    tmp_path: Path, stub_model: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.comm.core import CommClosedError

    async def closed(_: object) -> None:
        raise CommClosedError("closed")

    monkeypatch.setattr(crew.Crew, "look", closed)
    folder = write_wells(tmp_path / "in")
    with pytest.raises(ClusterError, match="went away while the run began"):
        score_on_cluster(settings(folder, tmp_path / "s.db", stub_model), address)
    assert not (tmp_path / "s.db").exists()


@pytest.mark.timeout(300)
def test_ctrl_c_ends_soon_and_the_same_command_goes_on(tmp_path: Path, stub_model: Path, address: str) -> None:
    folder = write_wells(tmp_path / "in", WELLS, times=3)
    one, stop = settings(folder, tmp_path / "two.db", stub_model), threading.Event()
    began: list[float] = []

    def press() -> None:
        began.append(time.monotonic())
        stop.set()

    first = score_on_cluster(one, address, stop, after(3, press))
    assert time.monotonic() - began[0] < 30
    assert first.progress.scored >= 3
    assert first.progress.pending > 0
    assert first.progress.failed == 0
    second = score_on_cluster(one, address)
    assert second.progress.scored + first.progress.scored == 72
    score_folder(settings(folder, tmp_path / "one.db", stub_model))
    assert everything(tmp_path / "one.db") == everything(tmp_path / "two.db")


@pytest.mark.timeout(300)
def test_a_cluster_that_is_lost_ends_the_run_and_blames_no_image(
    tmp_path: Path,
    stub_model: Path,
    cache: Path,  # noqa: ARG001 — before the workers begin
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_pipeline, "LOST_S", 1.0)
    folder = write_wells(tmp_path / "in", WELLS, times=3)
    one = settings(folder, tmp_path / "two.db", stub_model)
    cluster = begin(1)
    try:
        with pytest.raises(ClusterError, match="all workers of tcp://.* were lost; start some, then run the same"):
            score_on_cluster(one, cluster.scheduler_address, None, after(2, lambda: cluster.scale(0)))
        cluster.scale(1)
        with pytest.raises(ClusterError, match="the scheduler tcp://.* went away; start it again"):
            score_on_cluster(one, cluster.scheduler_address, None, after(10, cluster.close))
    finally:
        cluster.close()
    states = dict(rows(tmp_path / "two.db", "SELECT state, count(*) FROM image GROUP BY state"))
    assert states["scored"] + states["pending"] == 72
    assert states["pending"] > 0
    assert rows(tmp_path / "two.db", "SELECT max(attempts) FROM image") == [(0,)]
    score_folder(one)
    score_folder(settings(folder, tmp_path / "one.db", stub_model))
    assert everything(tmp_path / "one.db") == everything(tmp_path / "two.db")


def test_a_scheduler_that_does_not_answer_is_said_at_once(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "CONNECT_S", 1.0)
    folder = write_wells(tmp_path / "in", "A01")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        words = ("score", folder, "--db", tmp_path / "s.db", "--model", stub_model, "--dask", address)
        assert f"the scheduler {address} does not answer within 1 s" in sentence(sesmo(*words, code=3))
        taken.listen()  # now somebody is there who is no scheduler
        assert f"the scheduler {address} does not answer within 1 s" in sentence(sesmo(*words, code=3))
    assert not (tmp_path / "s.db").exists()


@pytest.mark.parametrize(
    ("address", "said"), [("local:many", "is no number of workers"), ("tcp://:::", "is no address")]
)
def test_an_address_that_is_none_is_refused(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path, address: str, said: str
) -> None:
    words = ("score", write_wells(tmp_path / "in", "A01"), "--model", stub_model, "--dask", address)
    assert said in sentence(sesmo(*words, code=2))


def test_a_scheduler_without_workers_is_waited_for_and_said(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "WORKERS_S", 0.5)
    words = ("score", write_wells(tmp_path / "in", "A01"), "--db", tmp_path / "s.db", "--model", stub_model)
    with begin(0) as cluster:
        said = sentence(sesmo(*words, "--dask", cluster.scheduler_address, code=3))
    assert said.endswith(f"has no workers; start some with: dask worker {cluster.scheduler_address}")
    assert not (tmp_path / "s.db").exists()


def test_another_version_a_foreign_worker_and_an_unseen_folder_end_the_run_before_it_begins(
    sesmo: Sesmo,
    tmp_path: Path,
    stub_model: Path,
    address: str,
    two_workers: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_wells(tmp_path / "in", "A01")
    words = ("score", folder, "--db", tmp_path / "s.db", "--model", stub_model, "--dask", address)
    with client(two_workers) as now:
        worker = next(iter(now.scheduler_info()["workers"]))
        now.run(cluster_stub.blind, True, workers=[worker])
        said = sentence(sesmo(*words, code=3))
        assert said.startswith(f"sesmo-live: worker {worker} does not see the folder {folder} as this computer does")
        now.run(cluster_stub.blind, False, workers=[worker])
        now.run(cluster_stub.foreign, True, workers=[worker])
        said = sentence(sesmo(*words, code=3))
        assert said.startswith(f"sesmo-live: worker {worker} cannot run sesmo-live (")
        assert "ModuleNotFoundError" in said
        now.run(cluster_stub.foreign, False, workers=[worker])
    versions = {"sesmo-live": "0.9.0"}
    real = alike._version
    monkeypatch.setattr(alike, "_version", lambda name: versions.get(name) or real(name))
    for name, mine, theirs in (("sesmo-live", "0.9.0", "0.1.0"), ("numpy", "1.0", np.__version__)):
        alike.about.cache_clear()
        versions.clear()
        versions[name] = mine
        said = sentence(sesmo(*words, code=3))
        assert theirs in said
        assert f"and this computer {mine}; install the same on both" in said
    alike.about.cache_clear()
    assert not (tmp_path / "s.db").exists()


def test_a_folder_is_seen_only_with_what_lies_in_it(tmp_path: Path) -> None:
    there, empty = write_wells(tmp_path / "in", WELLS), tmp_path / "empty"
    empty.mkdir()
    names = alike.sample(there)
    assert len(names) == alike.SAMPLE
    assert alike.unseen({str(there): names, str(empty): alike.sample(empty)}) == ""
    assert alike.unseen({str(empty): names}) == str(empty)  # where a share is not mounted
    assert alike.unseen({str(tmp_path / "none"): []}) == str(tmp_path / "none")


def test_a_model_is_kept_by_its_hash_or_not_at_all(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = bundles.read_bundle(stub_model)
    assert bundles.lacking([bundle.sha256]) == [bundle.sha256]
    for passport, weights in ((bundle.passport + b" ", bundle.weights), (bundle.passport, bundle.weights + b" ")):
        with pytest.raises(ModelError, match="damaged on its way"):
            bundles.keep_bundle(bundles.Bundle(passport, weights), bundle.sha256)
    for _ in range(2):
        bundles.keep_bundle(bundle, bundle.sha256)
        kept = bundles.find_bundle(bundle.sha256)
        assert kept is not None
        assert [path.name for path in kept.parent.iterdir()] == [bundle.sha256]
        assert bundles.read_bundle(kept) == bundle
        (kept / WEIGHTS).write_bytes(b"rotten")
    assert bundles.lacking([bundle.sha256]) == [bundle.sha256]
    shipped = bundles.read_bundle(find_model(None))
    assert bundles.find_bundle(shipped.sha256) == find_model(None)
