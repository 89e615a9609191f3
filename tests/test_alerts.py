"""Messages against a real SMTP server and a real HTTP receiver: they arrive once, and never hold up the work."""

import io
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from sesmo_live.alerts import WHAT_TO_DO, Notifier, Pace, check_urls
from sesmo_live.errors import ConfigError
from tests.figures import figure
from tests.receivers import Mailbox, Receiver, free_port

# Apprise tries the old module first, for Python before 3.13; an ignored warning everywhere but in tests.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

DOCS = Path(__file__).parents[1] / "docs" / "alerts.md"
QUICK = Pace(gather_s=0.05, repeat_s=0.1, retry_s=0.1, longest_retry_s=0.3)
MESSAGE = "D:/images/µ-Platte 7: cannot be reached; look at the share"


def wait_for(condition: Callable[[], object], timeout_s: float = 15) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def mail_server() -> Iterator[tuple[Mailbox, int]]:
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield mailbox, controller.port
    controller.stop()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Yield what a log at its most talkative holds; caplog also hears loggers that keep to themselves."""
    for thread in threading.enumerate():  # a sender that an earlier test left at a dead receiver still speaks
        if thread.name.startswith("alerts "):
            thread.join(30)
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """Yield the port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


# -- what arrives ------------------------------------------------------------------------------------------------------


def test_an_incident_arrives_as_e_mail_once_in_utf8(mail_server: tuple[Mailbox, int]) -> None:
    mailbox, port = mail_server
    url = f"mailto://127.0.0.1:{port}?from=sesmo@lab.example&to=me@lab.example,you@lab.example"
    with Notifier([url], pace=QUICK) as notifier:
        notifier.notify("share-gone", "µ-Platte 7", MESSAGE)
        wait_for(lambda: len(mailbox.mails) >= 2)
        time.sleep(0.3)
    assert sorted(mailbox.recipients) == [["me@lab.example"], ["you@lab.example"]], "once to each"
    mail, text = mailbox.mails[0], mailbox.texts()[0]
    assert mail["Subject"] == "sesmo-live: share gone (µ-Platte 7)"
    assert "sesmo@lab.example" in mail["From"]
    assert MESSAGE in text
    assert f"What to do: {WHAT_TO_DO['share-gone']}" in text
    assert f"Computer: {socket.gethostname()}" in text
    assert re.search(r"Time: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", text)


def test_an_incident_and_its_end_arrive_at_a_webhook_once(receiver: Receiver) -> None:
    with Notifier([receiver.url], pace=QUICK) as notifier:
        notifier.notify("share-gone", "µ-Platte 7", MESSAGE)
        wait_for(lambda: receiver.messages)
        notifier.over("share-gone", "µ-Platte 7", 720)
        wait_for(lambda: len(receiver.messages) == 2)
        time.sleep(0.3)
    gone, over = receiver.messages
    assert (gone["title"], gone["type"]) == ("sesmo-live: share gone (µ-Platte 7)", "warning")
    assert gone["message"].startswith(f"{MESSAGE}\n\nWhat to do: ")
    assert (over["title"], over["type"]) == ("sesmo-live: share gone (µ-Platte 7): over after 12 min", "success")
    assert "What to do" not in over["message"]


def test_names_that_files_may_have_go_through(receiver: Receiver, mail_server: tuple[Mailbox, int]) -> None:
    mailbox, port = mail_server
    mail = f"mailto://127.0.0.1:{port}?from=sesmo@lab.example&to=me@lab.example"
    with Notifier([receiver.url, mail], pace=QUICK) as notifier:
        notifier.notify("stalled", "P\udcff\r\nBcc: evil@x.example", "line one\nline two <b>&amp; " + "x" * 9000)
        wait_for(lambda: receiver.messages and mailbox.mails)
    assert receiver.messages[0]["title"] == "sesmo-live: stalled (P? Bcc: evil@x.example)"
    assert receiver.messages[0]["message"].startswith("line one line two <b>&amp; xxx")
    assert len(receiver.messages[0]["message"]) < 1000
    assert mailbox.recipients == [["me@lab.example"]]
    assert mailbox.mails[0]["Subject"] == "sesmo-live: stalled (P? Bcc: evil@x.example)"
    assert "line one line two <b>&amp; xxx" in mailbox.texts()[0]


# -- receivers that are away -------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_dead_receiver_never_blocks(black_hole: int, receiver: Receiver) -> None:
    urls = [f"json://127.0.0.1:{black_hole}/x", f"json://127.0.0.1:{free_port()}/x", receiver.url]
    notifier = Notifier(urls, pace=QUICK)
    slowest = 0.0
    for number in range(1000):
        began = time.perf_counter()
        notifier.notify("stalled", f"P{number}", MESSAGE)
        slowest = max(slowest, time.perf_counter() - began)
    wait_for(lambda: receiver.messages)  # the living one is not held up by the dead ones
    began = time.perf_counter()
    notifier.close(0.5)
    closing = time.perf_counter() - began
    figures = f"slowest of 1000 notify() {1000 * slowest:.2f} ms, close(0.5) took {closing:.2f} s"
    figure(f"dead receivers: {figures}")
    assert slowest < 0.05
    assert closing < 1


@pytest.mark.parametrize("status", [None, 500, 429])
def test_messages_of_an_outage_arrive_after_it_and_the_log_has_one_line(
    status: int | None, logged: io.StringIO
) -> None:
    port = free_port()
    receiver = Receiver(port) if status else None
    if receiver and status:
        receiver.status = status
    with Notifier([f"json://user:geheim@127.0.0.1:{port}/t0ken?+Authorization=bearer5"], pace=QUICK) as notifier:
        for subject in ("P1", "P2", "P3"):
            notifier.notify("stalled", subject, f"{subject}: no new image for 96 min")
            time.sleep(0.4)
        notifier.over("stalled", "P1", 720)
        notifier.notify("stalled", "P1", "P1: no new image for 97 min")
        receiver = receiver or Receiver(port)
        receiver.status = 200
        wait_for(lambda: "can be reached again" in logged.getvalue())
        time.sleep(0.4)
    receiver.close()
    (message,) = receiver.messages
    assert message["title"] == "sesmo-live: 5 messages (5 stalled)"
    texts = [
        "P1: no new image for 96",
        "P2: no new",
        "P3: no new",
        "(P1): over after 12 min",
        "P1: no new image for 97",
    ]
    assert sorted(texts, key=message["message"].index) == texts, "in their order"
    lines = logged.getvalue().splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("alerts.urls entry 1 (json://…): messages cannot be sent (")
    assert lines[1] == "alerts.urls entry 1 (json://…): can be reached again; 5 messages sent"
    assert not re.search("geheim|t0ken|bearer5", logged.getvalue())


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # the test's server has no certificate
def test_a_mail_servers_own_words_are_logged(logged: io.StringIO) -> None:
    def refuse(*_: object) -> AuthResult:
        return AuthResult(success=False, handled=False)

    mailbox = Mailbox()
    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=refuse,
        auth_required=True,
        auth_require_tls=False,
    )
    controller.start()
    url = f"mailto://user:geheim@127.0.0.1:{controller.port}?from=sesmo@lab.example&to=me@lab.example"
    with Notifier([url], pace=QUICK) as notifier:
        notifier.notify("stalled", "P1", MESSAGE)
        wait_for(lambda: "cannot be sent" in logged.getvalue())
        notifier.close(5)
    controller.stop()
    assert not mailbox.mails
    assert "535" in logged.getvalue()
    assert "geheim" not in logged.getvalue()
    assert "1 messages could not be sent before the end" in logged.getvalue()


def test_the_oldest_messages_go_when_a_receiver_is_away_for_long() -> None:
    port = free_port()
    with Notifier([f"json://127.0.0.1:{port}/x"], pace=QUICK) as notifier:
        for number in range(700):
            notifier.notify("stalled", f"P{number}", f"number {number}.")
        time.sleep(0.3)
        receiver = Receiver(port)
        wait_for(lambda: receiver.messages)
    receiver.close()
    assert receiver.messages[0]["title"] == "sesmo-live: 500 messages (500 stalled)"
    assert "number 699." in receiver.messages[0]["message"]
    assert "and 490 earlier ones\n200 older messages were dropped" in receiver.messages[0]["message"]


def test_a_plugins_surprise_does_not_end_the_messages(
    receiver: Receiver, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.plugins.custom_json import NotifyJSON

    send = NotifyJSON.send

    def surprise(*_: object, **__: object) -> bool:
        raise RuntimeError("http://127.0.0.1/geheim")

    monkeypatch.setattr(NotifyJSON, "send", surprise)
    with Notifier([receiver.url], pace=QUICK) as notifier:
        notifier.notify("stalled", "P", MESSAGE)
        wait_for(lambda: "cannot be sent (RuntimeError)" in logged.getvalue())
        monkeypatch.setattr(NotifyJSON, "send", send)
        wait_for(lambda: receiver.messages)
    assert "geheim" not in logged.getvalue()


# -- not too many ------------------------------------------------------------------------------------------------------


def test_what_piles_up_goes_as_one_message(receiver: Receiver) -> None:
    with Notifier([receiver.url], pace=Pace(gather_s=0.5)) as notifier:
        for number in range(150):
            notifier.notify("stalled", f"P{number}", f"plate {number} stalled")
        for number in range(50):
            notifier.notify("share-gone", f"S{number}", f"share {number} gone")
        wait_for(lambda: receiver.messages)
        time.sleep(0.2)
    (message,) = receiver.messages
    assert message["title"] == "sesmo-live: 200 messages (150 stalled, 50 share gone)"
    assert message["message"].count("share gone (S") == 10
    assert "\nand 190 earlier ones\n" in message["message"]
    assert message["message"].count("What to do") == 2


def test_one_kind_and_subject_is_told_once_in_a_while(receiver: Receiver) -> None:
    with Notifier([receiver.url], pace=Pace(gather_s=0.02, repeat_s=1.0)) as notifier:
        notifier.notify("share-gone", "S", "gone 0")
        wait_for(lambda: receiver.messages)
        for number in range(1, 20):  # it flickers
            notifier.over("share-gone", "S", 1)
            notifier.notify("share-gone", "S", f"gone {number}")
            time.sleep(0.01)
        notifier.notify("share-gone", "T", "another share is told at once")
        wait_for(lambda: len(receiver.messages) == 2)
        wait_for(lambda: len(receiver.messages) == 3)
    assert receiver.times[1] - receiver.times[0] < 0.9
    assert receiver.times[2] - receiver.times[0] >= 1.0
    assert [message["title"] for message in receiver.messages] == [
        "sesmo-live: share gone (S)",
        "sesmo-live: share gone (T)",
        "sesmo-live: 38 messages (38 share gone)",
    ]
    assert Pace().repeat_s == 60


@pytest.mark.alone
def test_mails_are_not_delayed_by_the_wall_clock(mail_server: tuple[Mailbox, int]) -> None:
    mailbox, port = mail_server
    with Notifier([f"mailto://127.0.0.1:{port}?from=a@lab.example&to=b@lab.example"], pace=QUICK) as notifier:
        for number in range(3):  # Apprise alone waits 5.5 s between mails, and an hour when clocks go back
            notifier.notify("stalled", f"P{number}", MESSAGE)
            began = time.monotonic()
            wait_for(lambda number=number: len(mailbox.mails) == number + 1)  # type: ignore[misc]
            assert time.monotonic() - began < 3


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_closing_sends_what_waits(receiver: Receiver) -> None:
    notifier = Notifier([receiver.url])  # at its usual pace nothing goes within the first second
    notifier.notify("stalled", "P1", "one")
    notifier.notify("stalled", "P1", "two")
    began = time.perf_counter()
    notifier.close()
    assert time.perf_counter() - began < 0.9
    notifier.close()
    (message,) = receiver.messages
    assert "one" in message["message"]
    assert "two" in message["message"]


@pytest.mark.alone
def test_a_silent_receiver_does_not_hold_up_the_end_of_the_process(black_hole: int) -> None:
    program = f"""
import threading
import time
from sesmo_live.alerts import Notifier, Pace
notifier = Notifier(["json://127.0.0.1:{black_hole}/x", "mailto://127.0.0.1:{black_hole}?from=a@b.cd&to=e@f.gh"])
notifier.notify("stalled", "P", "m")
time.sleep(1.5)
print("closing", flush=True)
notifier.close(0.5)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"closing"
        began = time.perf_counter()
        assert process.wait(10) == 0
        took = time.perf_counter() - began
    figure(f"process ended {took:.2f} s after close(0.5) with two silent receivers")
    assert took < 2


@pytest.mark.alone
def test_without_urls_nothing_is_sent_and_apprise_is_not_loaded() -> None:
    program = """
import sys, time
opened = []
sys.addaudithook(lambda name, args: opened.append((name, args)) if name.startswith("socket.") else None)
from sesmo_live.alerts import Notifier, check_urls
with Notifier([]) as notifier:
    notifier.notify("stalled", "P", "m")
assert not [name for name in sys.modules if name.startswith(("apprise", "requests"))]
began = time.perf_counter()
import apprise
from tests.figures import figure
imported = time.perf_counter()
check_urls(["slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", "mailtos://u:p@gmail.com", "json://h.example/x"])
ended = time.perf_counter()
beyond = [e for e in opened if e[0] != "socket.__new__" and not (e[0] == "socket.bind" and e[1][1][0] == "::1")]
assert not beyond, beyond
print(f"import apprise {1000 * (imported - began):.0f} ms, first URLs {1000 * (ended - imported):.0f} ms")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    figure(f"{done.stdout.strip()}; no network was touched")


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("malto://user:geheim@host", r"entry 2 \(malto://…\) is no Apprise URL; did you mean mailto://\?"),
        ("qqqqqqq://user:geheim@host", r"entry 2 \(qqqqqqq://…\) is no Apprise URL; begin it with its service"),
        ("my geheim address", "entry 2 is no Apprise URL"),
        ("", "entry 2 is no Apprise URL"),
        ("mailto://", r"entry 2 \(mailto://…\) lacks a part"),
        ("slack://geheim", r"entry 2 \(slack://…\) lacks a part"),
        ("mailtos://user:geheim/x@host", r"entry 2 \(mailtos://…\) lacks a part"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_the_start_without_its_secrets(
    url: str, text: str, logged: io.StringIO
) -> None:
    for refused in (check_urls, Notifier):
        with pytest.raises(ConfigError, match=rf"alerts\.urls {text}.*docs/alerts.md") as caught:
            refused(["json://host.example/x", url])
        assert "geheim" not in str(caught.value) + logged.getvalue()


def test_the_guide_names_every_kind_and_its_urls_work() -> None:
    guide = DOCS.read_text(encoding="utf-8")
    urls = re.findall(r'[`"]([a-z]+://[^`"\s]+)[`"]', guide)
    assert len(urls) >= 9
    check_urls(urls)
    assert re.findall(r"^\| `([a-z-]+)` \|", guide, re.M) == list(WHAT_TO_DO)
