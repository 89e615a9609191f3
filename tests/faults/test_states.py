"""Whatever lands, grows, moves, goes or dies: every complete image is scored once a model, or failed with a reason."""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.conftest import blobs
from tests.faults.nights import Daemon, Microscope, kill, night_settings, query, tiff_bytes, wait_until_watching
from tests.figures import figure
from tests.stub import write_stub_model

SITES = [f"{well}_f1_t1_cPhase_z0.tif" for well in ("A01", "A02", "B07", "C03", "D05")]
DAEMON = Daemon()


class Night(RuleBasedStateMachine):
    """A folder in which anything may happen to five files, under a daemon that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="night-"))
        self.folder, self.db = self.home / "in", self.home / "n.db"
        self.models = [write_stub_model(self.home / name, name) for name in ("one", "two")]
        self.model = self.models[0]
        self.microscope = Microscope(self.folder, self.model, 0)
        images = [blobs(seed, 140, 5).astype("uint16") * (1 + seed) for seed in range(4)]
        self.contents = [tiff_bytes(image, compression=None if n % 2 else "zlib") for n, image in enumerate(images)]
        self.sums = [self.microscope.sums(image) for image in images]
        self.there: dict[str, int] = {}
        """Version of each file that is wholly there."""
        self.halves: dict[str, int] = {}
        """Version of each file of which only a part is there."""
        self.jump_s = 0.0

    def teardown(self) -> None:
        try:
            self.is_true()
        finally:
            shutil.rmtree(self.home)

    site = st.sampled_from(SITES)
    version = st.integers(0, 3)

    @rule(site=site, version=version)
    def land(self, site: str, version: int) -> None:
        (self.folder / site).write_bytes(self.contents[version])
        self.halves.pop(site, None)
        self.there[site] = version

    @rule(site=site, version=version)
    def appear(self, site: str, version: int) -> None:
        passing = self.folder / f"{site}.tmp"
        passing.write_bytes(self.contents[version])
        passing.replace(self.folder / site)
        self.halves.pop(site, None)
        self.there[site] = version

    @rule(site=site, version=version, room=st.booleans(), part=st.floats(0.01, 0.95))
    def begin(self, site: str, version: int, room: bool, part: float) -> None:
        data = self.contents[version]
        with (self.folder / site).open("wb") as file:
            file.write(data[: max(1, int(len(data) * part))])
            if room:
                file.truncate(len(data))
        self.there.pop(site, None)
        self.halves[site] = version

    @precondition(lambda self: self.halves)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(sorted(self.halves)))
        version = self.halves.pop(site)
        with (self.folder / site).open("r+b") as file:
            file.write(self.contents[version])
        self.there[site] = version

    @precondition(lambda self: self.there)
    @rule(data=st.data(), goal=site)
    def rename(self, data: st.DataObject, goal: str) -> None:
        site = data.draw(st.sampled_from(sorted(self.there)))
        (self.folder / site).replace(self.folder / goal)
        self.halves.pop(goal, None)
        self.there[goal] = self.there.pop(site)

    @rule(site=site)
    def delete(self, site: str) -> None:
        (self.folder / site).unlink(missing_ok=True)
        self.there.pop(site, None)
        self.halves.pop(site, None)

    @rule(jump_s=st.sampled_from((-90_000.0, -3600.0, 0.0, 3600.0, 1e6)))
    def clock_jumps(self, jump_s: float) -> None:
        self.jump_s = jump_s

    @rule(number=st.integers(0, 1))
    def change_model(self, number: int) -> None:
        self.model = self.models[number]

    @rule(after_s=st.sampled_from((0.0, 0.05, 0.1, 0.2, 0.4)))
    def work_and_be_killed(self, after_s: float) -> None:
        process = DAEMON.start(self._settings(), self.jump_s)
        wait_until_watching(self.db, process)
        time.sleep(after_s * random.random() * 2)  # the moment need not be repeatable
        kill(process)

    @rule(site=site, version=version)
    def work_while_it_lands(self, site: str, version: int) -> None:
        with self._working():
            self.land(site, version)

    def _settings(self) -> Any:
        quick = {"settle_s": 0.1, "scan_interval_s": 0.05, "retry_after_s": 0.1, "zero_tail_hold_s": 0.2, "retries": 1}
        return night_settings(self.folder, self.db, self.model, **quick)

    @contextmanager
    def _working(self) -> Iterator[None]:
        process = DAEMON.start(self._settings(), self.jump_s)
        wait_until_watching(self.db, process)
        yield
        process.terminate()
        process.join(30)
        assert process.exitcode == 0

    def is_true(self) -> None:
        """Let the daemon finish, then compare the ledger with what is there."""
        with self._working():
            deadline = time.monotonic() + 30
            while (wrong := self._wrong()) and time.monotonic() < deadline:
                time.sleep(0.05)
        assert not wrong, wrong

    def _wrong(self) -> list[str]:
        rows = query(
            self.db,
            "SELECT i.path, i.state, i.reason, f.n, f.sum FROM image i LEFT JOIN model m ON m.model_id LIKE "
            f"'{self.model.name}-%' LEFT JOIN field_score f ON f.image_id = i.id AND f.model_id = m.id "
            "WHERE i.state <> 'superseded'",
        )
        wrong = []
        for site, version in self.there.items():
            n, total = self.sums[version]
            mine = [row[1:] for row in rows if Path(row[0]).name == site]
            right = len(mine) == 1 and mine[0][0] == "scored" and mine[0][2] == n and abs(mine[0][3] - total) < 1e-4
            if not right:
                wrong.append(f"{site} should have {n} cells of {total:.3f}: {mine}")
        for site in self.halves:
            mine = [row[1:] for row in rows if Path(row[0]).name == site]
            if not any(state in ("failed", "scored") for state, *_ in mine):
                wrong.append(f"{site} is not whole and not failed: {mine}")
        wrong += [f"{path} is pending: {reason}" for path, state, reason, *_ in rows if state == "pending"]
        wrong += [f"{path} has no reason" for path, state, reason, *_ in rows if state != "scored" and not reason]
        return wrong


def explore(examples: int, steps: int) -> None:
    began = time.monotonic()
    run_state_machine_as_test(
        Night,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    figure(f"{examples} nights of up to {steps} events in {time.monotonic() - began:.0f} s: the invariant held")


@pytest.mark.timeout(300)
def test_every_complete_image_is_scored_once_a_model_or_failed_with_a_reason() -> None:
    explore(12, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_same_in_200_nights_of_40_events() -> None:
    explore(200, 40)
