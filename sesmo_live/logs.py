"""The log file beside the terminal: rotated, with times and zones, and never a reason to stop."""

import logging
import os
import re
import sys
import time
from contextlib import suppress
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from sesmo_live.errors import UsageError

RETRY_S = 60.0
"""Seconds until a rotation that was refused is tried again; the same file is written meanwhile."""

COMPLAIN_S = 600.0
"""At most once in so many seconds the terminal is told that the log file cannot be written."""

_OURS = ("acquisition", "db", "models", "sesmo_live")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def start_logging(file: Path | None, max_mb: float, keep: int) -> None:
    """Write the log to `file` too, in at most `keep` old files and the current one of `max_mb` MB each.

    The terminal's messages stay as they are; the file also gets what the lower packages say at level INFO. A second
    call replaces the first's file. Raises UsageError when the file cannot be opened; later faults are survived.
    """
    logging.raiseExceptions = False  # a closed terminal must not turn each message into a traceback
    root = logging.getLogger()
    for former in [handler for handler in root.handlers if isinstance(handler, _LogFile)]:
        root.removeHandler(former)
        former.close()
    if file is None:
        return
    try:
        log_file = _LogFile(file, max_bytes=max(1, int(max_mb * 1e6)), keep=keep)
    except OSError as error:
        raise UsageError(
            f"the log file {file} cannot be opened ({error.strerror}); create its folder, or change file in [logging]"
        ) from error
    for handler in root.handlers:
        if _as_before not in handler.filters:
            handler.addFilter(_as_before)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    root.addHandler(log_file)


def _as_before(record: logging.LogRecord) -> bool:
    """Keep from the terminal what only the file shall have."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] == "sesmo_live"


class _Lines(logging.Formatter):
    """One line a message, with the time and its zone; passwords in URLs are starred out."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        # A file's name may hold line ends; it must not be able to forge a line of the log.
        record.message = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return _CREDENTIALS.sub("***@", super().format(record))


class _LogFile(RotatingFileHandler):
    """A rotating file that outlives a full disk, a folder gone, and a file that Windows will not rename."""

    def __init__(self, file: Path, *, max_bytes: int, keep: int) -> None:
        super().__init__(file, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_Lines())
        self._rotate_from = self._complain_from = float("-inf")  # monotonic times

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802
        if time.monotonic() < self._rotate_from:
            return False
        if self.stream is None:
            self.stream = self._open()
        written = os.fstat(self.stream.fileno()).st_size
        line = len(self.format(record).encode("utf-8", "backslashreplace")) + len(os.linesep)
        return written > 0 and self.maxBytes < written + line

    def doRollover(self) -> None:  # noqa: N802
        aside = f"{self.baseFilename}.full"
        try:
            self._drop_stream()
            # First the step that can be refused (the file is open elsewhere): once old files had been pushed on,
            # every new attempt would push another one over the edge.
            os.replace(self.baseFilename, aside)  # noqa: PTH105 — the standard library keeps the name as a string
            super().doRollover()
            os.replace(aside, f"{self.baseFilename}.1")  # noqa: PTH105
        except OSError as error:
            self._rotate_from = time.monotonic() + RETRY_S
            self._drop_stream()
            if os.path.exists(aside) and not os.path.exists(self.baseFilename):  # noqa: PTH110
                with suppress(OSError):
                    os.replace(aside, self.baseFilename)  # noqa: PTH105
            self._complain(f"cannot be rotated ({error}); it grows until it can")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        self._drop_stream()  # what could not be written must not hang on; the next message opens the file anew
        self._complain(f"cannot be written ({sys.exc_info()[1]}); the work goes on, check its disk and folder")

    def _drop_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()

    def _complain(self, trouble: str) -> None:
        """Tell the terminal, by no logger: that would come back here."""
        if time.monotonic() >= self._complain_from and sys.stderr is not None:
            self._complain_from = time.monotonic() + COMPLAIN_S
            with suppress(OSError, ValueError):
                sys.stderr.write(f"the log file {self.baseFilename} {trouble}\n")
                sys.stderr.flush()
