"""Stalls and failure rates: simulated nights, planted stalls, and what must never raise an alarm."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesmo_live.rhythm import SHORTEST_PERIOD_S, FailureRate, Overdue, Rhythm, span
from tests.figures import figure

HOUR = 3600.0
FACTOR = 1.5
LOOK_S = 30.0
SCAN_S = 5.0

Arrival = tuple[int, float, bool]


def night(rng: random.Random, *, rounds: int = 14, images: int = 384, round_s: float = 1200) -> list[Arrival]:
    """Return (time point, seconds, backlog) of a night: a round an hour, 10 % jitter, pauses within a round."""
    start, arrivals = 0.0, []
    for timepoint in range(1, rounds + 1):
        at = start
        pauses = {rng.randrange(images): rng.uniform(60, 600) for _ in range(rng.randrange(3))} if images > 1 else {}
        for image in range(images):
            at += round_s / images * rng.uniform(0.9, 1.1) + pauses.get(image, 0)
            arrivals.append((timepoint, SCAN_S * (at // SCAN_S + 1)))  # seen by the next scan
        start += rng.gauss(HOUR, 0.1 * HOUR)
    begins = rng.uniform(0, 3 * HOUR)  # the service starts in the middle of it
    return [(timepoint, max(at, begins), at < begins) for timepoint, at in arrivals]


def looks(
    rhythm: Rhythm, arrivals: list[Arrival], until: float, factor: float = FACTOR
) -> Iterator[tuple[float, bool]]:
    """Play arrivals to a rhythm; yield (time, is overdue) at every look in between, every 30 s."""
    look, queue = arrivals[0][1], iter([*arrivals, (0, until, False)])
    for timepoint, at, backlog in queue:
        while look < at:
            yield look, rhythm.overdue(look, factor) is not None
            look += LOOK_S
        if at < until:
            rhythm.arrived(timepoint, at, backlog=backlog)


@pytest.mark.parametrize(("images", "round_s"), [(384, 1200.0), (1, 10.0), (96, 3300.0)])
def test_no_alarm_in_200_regular_nights(images: int, round_s: float) -> None:
    alarms = 0
    for seed in range(200):
        arrivals = night(random.Random(seed), images=images, round_s=round_s)
        rhythm = Rhythm("P")
        alarms += any(overdue for _, overdue in looks(rhythm, arrivals, arrivals[-1][1]))
        assert rhythm.period_s is not None
        assert 0.8 * HOUR < rhythm.period_s < 1.25 * HOUR
    figure(f"{alarms} false alarms in 200 regular nights ({images} images in {round_s / 60:.0f} min a round)")
    assert alarms == 0


def test_a_planted_stall_is_told_in_time_in_200_nights() -> None:
    told_after, worst_nominal = [], 0.0
    for seed in range(200):
        rng = random.Random(seed)
        arrivals = night(rng)
        first = next(timepoint for timepoint, _, backlog in arrivals if not backlog and timepoint > arrivals[0][0])
        known = next(at for timepoint, at, _ in arrivals if timepoint == first + 3)
        stall = rng.uniform(known, arrivals[-1][1])
        rhythm = Rhythm("P")
        cut = [arrival for arrival in arrivals if arrival[1] <= stall]
        told = next(at for at, overdue in looks(rhythm, cut, stall + 9 * HOUR) if overdue)
        assert rhythm.period_s is not None
        assert told > cut[-1][1] + FACTOR * rhythm.period_s, "told before it was overdue"
        assert told <= stall + FACTOR * rhythm.period_s + 60
        told_after.append(told - stall)
        worst_nominal = max(worst_nominal, told - stall - FACTOR * HOUR)
    mean = sum(told_after) / len(told_after) / 60
    figure(
        f"200 of 200 planted stalls told, on average {mean:.0f} min and at most {max(told_after) / 60:.0f} min "
        f"later (frames every 60 min; at most {worst_nominal / 60:.1f} min beyond 90 min, as the rhythm is learned)"
    )


def play(rhythm: Rhythm, times: list[float]) -> Rhythm:
    for timepoint, at in enumerate(times, 1):
        rhythm.arrived(timepoint, at)
    return rhythm


def test_two_intervals_make_a_rhythm_and_the_longer_counts() -> None:
    assert play(Rhythm("P"), [0, HOUR]).overdue(9 * HOUR, FACTOR) is None
    trial_first = play(Rhythm("P"), [0, 60, HOUR])  # a trial image, then the run
    assert trial_first.period_s == HOUR - 60
    assert trial_first.overdue(HOUR + 1.4 * HOUR, FACTOR) is None
    assert trial_first.overdue(HOUR + 1.6 * HOUR, FACTOR) is not None


def test_a_configured_interval_counts_at_once_and_the_plates_own_overrules_it() -> None:
    rhythm = Rhythm("P", frame_interval_s=HOUR)
    rhythm.arrived(1, 0)
    assert rhythm.overdue(1.5 * HOUR, FACTOR) is None
    assert rhythm.overdue(1.5 * HOUR + 1, FACTOR) is not None
    slower = play(Rhythm("P", frame_interval_s=HOUR), [0, 2 * HOUR, 4 * HOUR])
    assert slower.overdue(6.9 * HOUR, FACTOR) is None


def test_a_changed_plan_is_followed_after_three_frames() -> None:
    times = [n * 1800.0 for n in range(10)]
    times += [times[-1] + n * 2 * HOUR for n in range(1, 4)]
    assert play(Rhythm("P"), times).period_s == 2 * HOUR


def test_one_long_stall_does_not_slow_the_next_alarm() -> None:
    assert play(Rhythm("P"), [0, HOUR, 2 * HOUR, 10 * HOUR, 11 * HOUR]).period_s == HOUR


def test_a_backlog_teaches_nothing_and_never_stalls() -> None:
    rhythm = Rhythm("P", frame_interval_s=HOUR)
    for timepoint in range(50):
        rhythm.arrived(timepoint, timepoint * 200.0, backlog=True)
    assert rhythm.overdue(1e9, FACTOR) is None, "an old plate in the folder has ended"
    unset = Rhythm("P")
    for timepoint in range(50):
        unset.arrived(timepoint, timepoint * 200.0, backlog=True)
    unset.arrived(49, 10_100.0)  # the rest of the round that the start fell into is no first arrival
    unset.arrived(50, 13_000.0)
    unset.arrived(51, 13_000.0 + HOUR)
    assert unset.period_s is None
    unset.arrived(52, 13_000.0 + 2 * HOUR)
    assert unset.period_s == HOUR


def test_a_burst_teaches_nothing() -> None:
    rhythm = play(Rhythm("P"), [n * 0.1 for n in range(100)])
    assert rhythm.overdue(1e9, FACTOR) is None


def test_what_came_while_the_folder_was_away_teaches_nothing() -> None:
    rhythm = play(Rhythm("P"), [0, HOUR, 2 * HOUR])
    for timepoint in (4, 5, 6):
        rhythm.arrived(timepoint, 5.5 * HOUR + 60 * timepoint, backlog=True)
    rhythm.arrived(7, 6 * HOUR)
    rhythm.arrived(8, 7 * HOUR)
    assert list(rhythm._intervals) == [HOUR] * 3


def test_stragglers_keep_a_plate_alive_but_teach_nothing() -> None:
    rhythm = play(Rhythm("P"), [0, HOUR, 2 * HOUR])
    rhythm.arrived(1, 2 * HOUR + 600)
    assert rhythm.period_s == HOUR
    assert rhythm.overdue(3.6 * HOUR, FACTOR) is None
    assert rhythm.overdue(2 * HOUR + 600 + 1.5 * HOUR + 1, FACTOR) is not None
    rhythm.arrived(4, 3 * HOUR)
    assert list(rhythm._intervals) == [HOUR] * 3


@pytest.mark.parametrize(("images", "stalled"), [(384, False), (350, False), (300, True), (1, True)])
def test_the_end_of_a_run_is_no_stall(images: int, stalled: bool) -> None:
    rhythm = Rhythm("P", timepoints=5)
    for timepoint in (202611200000, 202611200100, 202611200200, 202611200300):  # numbers may be dates
        rhythm.arrived(timepoint, (timepoint % 10000) * 36.0, images=384)
    assert rhythm.overdue(1e6, FACTOR) is not None, "four of five"
    rhythm.arrived(202611200400, 4 * HOUR, images=images)
    assert (rhythm.overdue(1e6, FACTOR) is not None) is stalled


def test_a_run_of_one_time_point_has_no_stall() -> None:
    rhythm = Rhythm("P", frame_interval_s=HOUR, timepoints=1)
    rhythm.arrived(1, 0)
    assert rhythm.overdue(1e6, FACTOR) is None


def test_a_restarted_service_remembers_and_tells_a_stall_that_began_while_it_was_down() -> None:
    rhythm = Rhythm("P", timepoints=9)
    for n, timepoint in enumerate(range(1, 5)):
        rhythm.remember(timepoint, n * HOUR - 1e5, n * HOUR + 1200 - 1e5, 384)
    last = 3 * HOUR + 1200 - 1e5
    assert rhythm.overdue(last + 1.49 * HOUR, FACTOR) is None
    late = rhythm.overdue(last + 1.6 * HOUR, FACTOR)
    assert late is not None
    assert (late.plate, late.period_s, late.images) == ("P", HOUR, 4 * 384)
    assert late.silent_s == pytest.approx(1.6 * HOUR)
    rhythm.arrived(5, last + 1.7 * HOUR, backlog=True)  # it went on meanwhile
    assert rhythm.overdue(last + 1.7 * HOUR + 60, FACTOR) is None


def test_the_sentence_names_plate_silence_rhythm_and_remedy() -> None:
    now = datetime(2026, 11, 20, 3, 50, tzinfo=UTC)
    assert Overdue("P7", 96 * 60, HOUR, 1536).sentence(now) == (
        "plate P7: no new image for 96 min (frames came every 60 min), "
        "the last of 1536 at 2026-11-20 02:14+00:00; look at the microscope"
    )
    assert (now - timedelta(minutes=96)).hour == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (45, "45 s"), (5760, "96 min"), (120, "2 min"), (5 * HOUR, "5.0 h")]
)
def test_durations_are_told_in_a_readers_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


STEPS = st.lists(
    st.tuples(st.integers(0, 6), st.floats(0, 1e5), st.booleans()), min_size=1, max_size=60
)  # time point, seconds since the last arrival, backlog


@given(steps=STEPS, factor=st.floats(1.01, 10), configured=st.none() | st.floats(0.1, 1e5))
def test_whatever_arrives_no_alarm_comes_early_and_none_goes_by_itself(
    steps: list[tuple[int, float, bool]], factor: float, configured: float | None
) -> None:
    rhythm, at = Rhythm("P", configured), 0.0
    live: list[float] = []
    for timepoint, wait_s, backlog in steps:
        at += wait_s
        rhythm.arrived(timepoint, at, backlog=backlog)
        live += [] if backlog else [at]
        assert rhythm.overdue(at + factor * SHORTEST_PERIOD_S * 0.999, factor) is None
    period_s = rhythm.period_s
    if period_s is None or not live:
        assert rhythm.overdue(at + 1e9, factor) is None
        return
    waits = [*(wait_s for _, wait_s, _ in steps), configured or 0.0]
    assert period_s >= SHORTEST_PERIOD_S
    assert period_s <= max(SHORTEST_PERIOD_S, sum(waits))
    assert rhythm.overdue(at + factor * period_s * 0.999, factor) is None
    late = [rhythm.overdue(at + factor * period_s * n, factor) for n in (1.001, 2, 50)]
    assert all(late)
    assert all(found and found.images == len(steps) for found in late)


@given(period=st.floats(60, 1e5), rounds=st.integers(3, 30), images=st.integers(1, 20), shift=st.floats(-1e6, 1e6))
def test_a_steady_plate_is_learned_whenever_it_began(period: float, rounds: int, images: int, shift: float) -> None:
    rhythm = Rhythm("P")
    for n in range(rounds):
        for image in range(images):
            rhythm.arrived(n, shift + n * period + image * 0.5 * period / images)
    assert rhythm.period_s == pytest.approx(period, rel=1e-3)


# -- failure rates -----------------------------------------------------------------------------------------------------


def test_too_many_failures_alarm_with_the_most_frequent_reason() -> None:
    rate = FailureRate("D:/images", "failed", 0.2)
    for _ in range(33):
        rate.seen("scored")
    for n in range(15):
        rate.seen("failed", f"/data/my plate/B{n:02}_s1.tif ends after {n} of 40 pages; copy it again")
    for n in range(2):
        rate.seen("failed", f"/data/C{n:02}.tif has no well")
    assert rate.alarm() == (
        "D:/images: 17 of the last 50 images failed, 15 of them alike: "
        "/data/my plate/B14_s1.tif ends after 14 of 40 pages; copy it again"
    )


@pytest.mark.parametrize(
    ("bad", "good", "alarm"),
    [(9, 0, False), (10, 0, True), (4, 6, False), (5, 5, True), (5, 20, False), (6, 23, True), (10, 40, False)],
)
def test_an_alarm_needs_enough_images_enough_failures_and_more_than_the_limit(bad: int, good: int, alarm: bool) -> None:
    rate = FailureRate("F", "failed", 0.2)
    for _ in range(good):
        rate.seen("scored")
    for _ in range(bad):
        rate.seen("failed", "r")
    assert (rate.alarm() is not None) is alarm


def test_an_alarm_ends_below_half_the_limit_and_does_not_flicker() -> None:
    rate = FailureRate("F", "failed", 0.2)
    states = []
    for n in range(300):
        failing = 50 <= n < 100 and n % 4 == 0
        rate.seen("failed" if failing else "scored", "r" if failing else "")
        states.append(rate.alarm() is not None)
    changes = [n for n in range(1, 300) if states[n] != states[n - 1]]
    assert len(changes) == 2
    assert changes[0] == 92, "the 11th of 50"
    assert changes[1] > 100
    bad_at_end = sum(1 for n in range(changes[1] - 49, changes[1] + 1) if 50 <= n < 100 and n % 4 == 0)
    assert bad_at_end == 4, "4 of 50 are the first below 10 %"


def test_failed_and_refused_are_counted_apart() -> None:
    failed, refused = FailureRate("F", "failed", 0.2), FailureRate("F", "refused", 0.5)
    for n in range(50):
        for rate in (failed, refused):
            rate.seen("refused" if n % 3 else "scored", "out of focus")
    assert failed.alarm() is None
    assert refused.alarm() == "F: 33 of the last 50 images were refused, 33 of them alike: out of focus"


@given(outcomes=st.lists(st.sampled_from(["scored", "failed", "refused"]), max_size=120), limit=st.floats(0.01, 1))
def test_an_alarm_never_comes_below_half_the_limit(outcomes: list[str], limit: float) -> None:
    rate = FailureRate("F", "failed", limit)
    for n, state in enumerate(outcomes, 1):
        rate.seen(state, "r")
        latest = outcomes[max(0, n - 50) : n]
        bad = latest.count("failed")
        if rate.alarm():
            assert bad >= limit / 2 * len(latest)
        else:
            assert bad <= limit * len(latest) or bad < 5 or len(latest) < 10
