"""Telling somebody: incidents go out as e-mail, Slack or web messages through Apprise, and never hold up the work."""

import difflib
import logging
import platform
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sesmo_live.errors import ConfigError
from sesmo_live.rhythm import FailureRate, Overdue, Rhythm, span

if TYPE_CHECKING:
    from apprise import NotifyBase

__all__ = ["WHAT_TO_DO", "FailureRate", "Notifier", "Overdue", "Pace", "Rhythm", "check_urls", "span"]

log = logging.getLogger(__name__)

MOST_PENDING = 500
"""Messages kept for a receiver that cannot be reached; the oldest go first."""

MOST_LINES = 10
"""Messages written out where many go as one; the others are counted."""

MOST_CHARS = 500
"""Longest text of one message; services refuse long ones."""

PATIENCE_S = 20.0
"""Seconds a receiver may take to answer; one that took the message but answered late would get it twice."""

WHAT_TO_DO = {
    "stalled": "look at the microscope; if the run has ended, set timepoints for this folder in config.toml",
    "share-gone": "look at the network and the share; scoring goes on by itself when the folder is back",
    "database-paused": "free room on the database's disk, or end what locks it; scoring goes on by itself",
    "failures": "mend what the reason names, then run: sesmo-live retry",
    "refusals": "look at the focus, the light and the cells",
    "watching": "nothing is lost, as the folder is still scanned; restart sesmo-live when it suits you",
}
"""What a kind of incident asks of its reader."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a receiver hears of us, in seconds.

    `gather_s`: messages wait so long for others to go with; `repeat_s`: between two messages of one kind and subject;
    `retry_s`: before the second attempt at a receiver that cannot be reached, tripled up to `longest_retry_s`.
    """

    gather_s: float = 1.0
    repeat_s: float = 60.0
    retry_s: float = 5.0
    longest_retry_s: float = 900.0


@dataclass(frozen=True, slots=True)
class _Alert:
    """One message: an incident, or the end (`over`) of one."""

    kind: str
    subject: str
    text: str
    at: datetime
    put_at: float
    over: bool

    @property
    def name(self) -> str:
        return f"{self.kind.replace('-', ' ')} ({self.subject})" + (f": {self.text}" if self.over else "")


class Notifier:
    """Sends incidents to every configured receiver, on threads of its own: no call here waits, or raises."""

    def __init__(self, urls: Sequence[str], *, pace: Pace | None = None) -> None:
        """Check the Apprise URLs and begin; without URLs nothing is ever sent. Raises ConfigError for a bad URL."""
        pace = pace or Pace()
        self._senders = [_Sender(name, service, pace) for name, service in _services(urls)]

    def notify(self, kind: str, subject: str, message: str) -> None:
        """Tell of an incident: `message` says in one sentence what happened to `subject`."""
        self._put(kind, subject, message, over=False)

    def over(self, kind: str, subject: str, lasted_s: float | None = None) -> None:
        """Tell that an incident is over."""
        self._put(kind, subject, "over" if lasted_s is None else f"over after {span(lasted_s)}", over=True)

    def _put(self, kind: str, subject: str, text: str, *, over: bool) -> None:
        alert = _Alert(kind, _clean(subject), _clean(text), datetime.now().astimezone(), time.monotonic(), over)
        for sender in self._senders:
            sender.put(alert)

    def close(self, timeout_s: float = 10.0) -> None:
        """Try once more to send what waits, and return within `timeout_s`; what cannot go is named in the log."""
        for sender in self._senders:
            sender.finish()
        end = time.monotonic() + timeout_s
        for sender in self._senders:
            sender.join(max(0.0, end - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Sender:
    """One receiver, what waits for it, and the thread that sends it; one that is away holds up no other."""

    def __init__(self, name: str, service: "NotifyBase", pace: Pace) -> None:
        self._name = name
        self._service = service
        self._mail = "mailto" in name
        self._pace = pace
        self._waiting: deque[_Alert] = deque()
        self._dropped = 0
        self._sent_at: dict[tuple[str, str], float] = {}
        self._failures = 0
        self._not_before = 0.0
        self._finishing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"alerts {name}", daemon=True)
        self._thread.start()

    def put(self, alert: _Alert) -> None:
        """Take a message; the oldest one goes when too many wait."""
        with self._changed:
            if len(self._waiting) >= MOST_PENDING:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(alert)
            self._changed.notify()

    def finish(self) -> None:
        """Ask the thread to try everything once more and to end."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end at most `timeout_s`; say what was not sent."""
        self._thread.join(timeout_s)
        with self._changed:
            if self._waiting:
                log.warning("%s: %d messages could not be sent before the end", self._name, len(self._waiting))

    def _work(self) -> None:
        while batch := self._next_batch():
            dropped = self._dropped
            sent = self._send(batch, dropped)
            with self._changed:
                now = time.monotonic()
                if sent:
                    kept = {id(alert) for alert in batch}
                    self._waiting = deque(alert for alert in self._waiting if id(alert) not in kept)
                    self._sent_at.update({(alert.kind, alert.subject): now for alert in batch})
                    self._failures, self._not_before = 0, 0.0
                    self._dropped -= dropped
                elif self._finishing:
                    return
                else:
                    wait_s = self._pace.retry_s * 3.0 ** min(self._failures, 20)
                    self._not_before = now + min(wait_s, self._pace.longest_retry_s)
                    self._failures += 1

    def _next_batch(self) -> list[_Alert]:
        """Wait for messages that may go now and return them together; none at the end."""
        with self._changed:
            while not self._finishing:
                now = time.monotonic()
                dues = [max(self._free_at(alert), alert.put_at + self._pace.gather_s) for alert in self._waiting]
                soonest = min(dues, default=None)
                if soonest is not None and soonest <= now:  # one may go, and takes the others along
                    return [alert for alert in self._waiting if self._free_at(alert) <= now]
                self._changed.wait(None if soonest is None else soonest - now)
            return list(self._waiting)

    def _free_at(self, alert: _Alert) -> float:
        """Return when a message may go at the earliest: not too soon after one like it, or after a failure."""
        last = self._sent_at.get((alert.kind, alert.subject))
        return self._not_before if last is None else max(self._not_before, last + self._pace.repeat_s)

    def _send(self, batch: list[_Alert], dropped: int) -> bool:
        """Send messages as one; log the first failure of a row, and its end."""
        title, body = _compose(batch, dropped)
        kind = "success" if all(alert.over for alert in batch) else "warning"
        with _reasons(detailed=self._mail) as reasons:
            try:
                sent = self._service.notify(body=body, title=title, notify_type=kind, body_format="text")
            except Exception as error:  # noqa: BLE001 — a worker's top: a plugin's surprise must not end the thread
                sent = False
                reasons.append(type(error).__name__)  # its text may hold the URL
        if sent and self._failures:
            log.info("%s: can be reached again; %d messages sent", self._name, len(batch))
        elif not sent and not self._failures:
            reason = "; ".join(dict.fromkeys(reasons)) or "no reason given"
            log.warning("%s: messages cannot be sent (%s); they are kept and tried again", self._name, reason)
        return bool(sent)


def _compose(batch: list[_Alert], dropped: int) -> tuple[str, str]:
    """Return title and body of one message, or of many as one."""
    kinds = [kind for kind in WHAT_TO_DO if any(alert.kind == kind and not alert.over for alert in batch)]
    todo = [f"What to do: {WHAT_TO_DO[kind]}" for kind in kinds]
    if len(batch) == 1:
        title, lines = batch[0].name, [batch[0].text]
    else:
        counts = Counter(alert.kind.replace("-", " ") for alert in batch).most_common()
        title = f"{len(batch)} messages (" + ", ".join(f"{count} {kind}" for kind, count in counts) + ")"
        lines = [f"{_time(a)} {a.name}" + ("" if a.over else f": {a.text}") for a in batch[-MOST_LINES:]]
        if len(batch) > MOST_LINES:
            lines.append(f"and {len(batch) - MOST_LINES} earlier ones")
    if dropped:
        lines.append(f"{dropped} older messages were dropped, as they could not be sent")
    return f"sesmo-live: {title}"[:150], "\n".join(
        [*lines, "", *todo, f"Computer: {platform.node()}", f"Time: {_time(batch[-1])}"]
    )


def _time(alert: _Alert) -> str:
    return alert.at.isoformat(" ", "seconds")


def _clean(text: str) -> str:
    """Return one line of valid Unicode: subjects hold file names, which may hold anything."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…"


def check_urls(urls: Sequence[str]) -> None:
    """Raise ConfigError naming the first entry that is no Apprise URL; what the entry holds is not shown."""
    _services(urls)


def _services(urls: Sequence[str]) -> list[tuple[str, "NotifyBase"]]:
    """Return the services behind the URLs, with a name for each that shows no secret."""
    if not urls:
        return []  # Apprise takes a second to load
    with _reasons():
        from apprise import Apprise, AppriseAsset

    asset = AppriseAsset(app_id="sesmo-live", app_desc="sesmo-live", app_url="", image_url_mask="")
    services = []
    for number, url in enumerate(urls, 1):
        scheme = (re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://", url) or ["", ""])[1].lower()
        name = f"alerts.urls entry {number} ({scheme}://…)" if scheme else f"alerts.urls entry {number}"
        with _reasons():
            service = Apprise.instantiate(url, asset=asset)
        if service is None:
            raise ConfigError(f"{name} {_fault(scheme)}; docs/alerts.md shows how")
        # Apprise spaces messages by the wall clock and would stop for an hour when clocks go back; we space them.
        service.request_rate_per_sec = 0
        service.socket_read_timeout = max(service.socket_read_timeout, PATIENCE_S)
        services.append((name, service))
    return services


def _fault(scheme: str) -> str:
    """Say what is wrong with a URL of that scheme that Apprise does not take."""
    from apprise.manager_plugins import NotificationManager

    manager = NotificationManager()  # type: ignore[no-untyped-call]
    known = sorted(manager.schemas())  # type: ignore[no-untyped-call]
    if scheme in known:
        return "lacks a part, or has an unencoded special character in its password; write it in full"
    near = difflib.get_close_matches(scheme, known, 1)
    return f"is no Apprise URL; did you mean {near[0]}://?" if near else "is no Apprise URL; begin it with its service"


class _Reasons(logging.Handler):
    """Keeps what Apprise says, thread by thread, out of the log: it would repeat itself at every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning for the thread that is sending, and a mail server's own words."""
        lines: list[str] | None = getattr(self.heard, "lines", None)
        if lines is None:
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING or (self.heard.detailed and text.startswith("Socket Exception: ")):
            lines.append(text.removeprefix("Socket Exception: "))


_REASONS = _Reasons()


@contextmanager
def _reasons(*, detailed: bool = False) -> Iterator[list[str]]:
    """Collect Apprise's warnings of this thread, in which it masks secrets.

    `detailed`: also an exception's text, which only a debug message has; a web service's would show its secret URL.
    """
    logger = logging.getLogger("apprise")
    logger.addHandler(_REASONS)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # below, it shows a web service's secret path
    _REASONS.heard.detailed, _REASONS.heard.lines = detailed, (lines := list[str]())
    try:
        yield lines
    finally:
        _REASONS.heard.lines = None
