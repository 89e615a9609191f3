"""When a night goes wrong: a plate's own rhythm and its stalls, a folder's rate of failures."""

import re
import statistics
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

SHORTEST_PERIOD_S = 30.0
"""No plate is imaged in less; time points that follow each other faster were copied, and teach no rhythm."""

LEARNED_FROM = 5
"""The rhythm is the median of so many of the latest intervals: it follows a changed plan after three frames."""

FEWEST_INTERVALS = 2
"""A single interval may be the pause after a trial image; of two, the longer counts."""

LAST_FRAME = 0.9
"""The last time point is complete with this part of a usual one's images: some microscopes leave out a field."""

WINDOW = 50
"""A folder is judged by so many of its latest images,"""

FEWEST_OUTCOMES = 10
"""once it has so many,"""

FEWEST_BAD = 5
"""of which at least so many are bad."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A plate without a new image for `silent_s`, though its frames came every `period_s`."""

    plate: str
    silent_s: float
    period_s: float
    images: int

    def sentence(self, now: datetime) -> str:
        """Say it in words; `now` is the present time with its zone."""
        last = (now - timedelta(seconds=self.silent_s)).isoformat(" ", "minutes")
        return (
            f"plate {self.plate}: no new image for {span(self.silent_s)} (frames came every {span(self.period_s)}), "
            f"the last of {self.images} at {last}; look at the microscope"
        )


class Rhythm:
    """One plate's own frame interval, learned from the first arrivals of its time points."""

    def __init__(self, plate: str, frame_interval_s: float | None = None, timepoints: int | None = None) -> None:
        """Begin with what is configured: `frame_interval_s` counts until a rhythm was learned."""
        self.plate = plate
        self._configured_s = frame_interval_s
        self._timepoints = timepoints
        self._images: Counter[int] = Counter()
        self._newest: int | None = None
        self._newest_at: float | None = None
        self._intervals: deque[float] = deque(maxlen=LEARNED_FROM)
        self._last_at: float | None = None
        self._live = False

    def arrived(self, timepoint: int, at: float, *, backlog: bool = False, images: int = 1) -> None:
        """Note images that came at `at` (monotonic seconds).

        `backlog`: they were there at the first scan, or at the first one after the folder was away; when they
        came is not known, so they teach no rhythm, and a plate of which nothing else comes never stalls.
        """
        self._images[timepoint] += images
        self._last_at = at if self._last_at is None else max(at, self._last_at)
        self._live = self._live or not backlog
        if self._newest is None or timepoint > self._newest:  # stragglers of earlier time points teach nothing
            if self._newest_at is not None and not backlog and at - self._newest_at >= SHORTEST_PERIOD_S:
                self._intervals.append(at - self._newest_at)
            self._newest, self._newest_at = timepoint, None if backlog else at

    def remember(self, timepoint: int, first_at: float, last_at: float, images: int) -> None:
        """Note a time point of an earlier run of the service, in ascending order; monotonic seconds, also negative."""
        self.arrived(timepoint, first_at, images=0)
        self.arrived(timepoint, last_at, images=images)

    @property
    def period_s(self) -> float | None:
        """Return the frame interval in seconds, None as long as it is not known."""
        learned = len(self._intervals) >= FEWEST_INTERVALS
        period_s = statistics.median_high(self._intervals) if learned else self._configured_s
        return None if period_s is None else max(period_s, SHORTEST_PERIOD_S)

    def overdue(self, now: float, factor: float) -> Overdue | None:
        """Return the stall when no image came for more than `factor` frame intervals, None otherwise."""
        period_s = self.period_s
        if period_s is None or self._last_at is None or not self._live or self._complete():
            return None
        silent_s = now - self._last_at
        return Overdue(self.plate, silent_s, period_s, self._images.total()) if silent_s > factor * period_s else None

    def _complete(self) -> bool:
        """Say whether all time points are there and the last one has about as many images as the others."""
        if self._timepoints is None or self._newest is None or len(self._images) < self._timepoints:
            return False
        others = [count for timepoint, count in self._images.items() if timepoint != self._newest]
        return not others or self._images[self._newest] >= LAST_FRAME * statistics.median_low(others)


class FailureRate:
    """How many of a folder's latest images failed (or were refused); make one for each of the two states."""

    def __init__(self, subject: str, state: Literal["failed", "refused"], limit: float) -> None:
        """Alarm when more than the fraction `limit` of the last 50 outcomes are in `state`."""
        self.subject = subject
        self._state = state
        self._limit = limit
        self._outcomes: deque[str | None] = deque(maxlen=WINDOW)
        self._alarmed = False

    def seen(self, state: str, reason: str = "") -> None:
        """Note what became of one image: scored, failed or refused, and why."""
        self._outcomes.append(reason if state == self._state else None)

    def alarm(self) -> str | None:
        """Return the alarm in words while there is one; it ends below half the limit, so that it does not flicker."""
        bad = [reason for reason in self._outcomes if reason is not None]
        n = len(self._outcomes)
        if self._alarmed:
            self._alarmed = len(bad) >= self._limit / 2 * n
        else:
            self._alarmed = n >= FEWEST_OUTCOMES and len(bad) >= FEWEST_BAD and len(bad) > self._limit * n
        return self._sentence(bad, n) if self._alarmed else None

    def _sentence(self, bad: list[str], n: int) -> str:
        verb = "failed" if self._state == "failed" else "were refused"
        kind, count = Counter(map(_alike, bad)).most_common(1)[0]
        example = next(reason for reason in reversed(bad) if _alike(reason) == kind)
        return f"{self.subject}: {len(bad)} of the last {n} images {verb}, {count} of them alike: {example}"


def _alike(reason: str) -> str:
    """Return a reason without what differs from image to image: paths, file names, numbers."""
    return re.sub(r"\S*[\d/\\]\S*", "#", reason)


def span(seconds: float) -> str:
    """Return a duration in the unit that a reader would choose."""
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"
