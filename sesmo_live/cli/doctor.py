"""The command that looks whether tonight's run can work: doctor."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption, FormatOption
from sesmo_live.cli.output import Format, show
from sesmo_live.config import Database, Settings, Watch, load_settings
from sesmo_live.errors import ConfigError

if TYPE_CHECKING:
    from sesmo_live.doctor import Check


def doctor(
    config: ConfigOption = None,
    db: DatabaseOption = None,
    watch: Annotated[
        Path | None, typer.Option("--watch", help="folder to look at, instead of the configuration's")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="ask TensorFlow for its devices (takes some seconds)")] = False,
    notify: Annotated[bool, typer.Option("--notify", help="send a test message to the configured alerts")] = False,
    output: FormatOption = Format.table,
) -> None:
    """Check everything that tonight's run needs; exit code 1 when something will keep it from working."""
    from sesmo_live.doctor import examine

    settings, first = _configured(config)
    if db is not None:
        settings = settings.model_copy(update={"database": Database(url=db)})
    if watch is not None:
        same = [
            block for block in settings.watch if block.folder.expanduser().resolve() == watch.expanduser().resolve()
        ]
        settings = settings.model_copy(update={"watch": same or [Watch(folder=watch)]})
    findings = [first, *examine(settings, gpu=gpu, notify=notify)]
    if output is Format.table:
        _print(findings)
    else:
        show([asdict(finding) for finding in findings], output)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _configured(config: Path | None) -> tuple[Settings, "Check"]:
    """Return the configuration, the defaults where it cannot be used, and what is to be said of it."""
    from sesmo_live.doctor import Check

    file = config if config is not None else Path("config.toml") if Path("config.toml").is_file() else None
    try:
        settings = load_settings(file)
    except ConfigError as error:
        said, _, remedy = str(error).partition("; ")
        return Settings(), Check("configuration", "fail", f"{said} (the rest is checked with the defaults)", remedy)
    folders = f"{len(settings.watch)} watched folder{'' if len(settings.watch) == 1 else 's'}"
    return settings, Check("configuration", "ok", f"{file}: {folders}" if file else "none; the defaults are used")


def _print(findings: Sequence["Check"]) -> None:
    """Print a line a finding, in full, with the remedy below: a table would cut them."""
    width = max(len(finding.name) for finding in findings if len(finding.name) <= 24)
    for finding in findings:
        _write(f"{finding.state:<5} {finding.name:<{width}}  {finding.found}")
        if finding.remedy:
            _write(f"{'':5} {'':{width}}  -> {finding.remedy}")
    states = [finding.state for finding in findings]
    _write(f"{len(states)} checks: {states.count('fail')} failed, {states.count('warn')} warnings")


def _write(line: str) -> None:
    """Write a line in whatever encoding the terminal has; names of files may hold anything."""
    encoding = sys.stdout.encoding or "utf-8"
    clean = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    sys.stdout.write(clean.encode(encoding, "backslashreplace").decode(encoding) + "\n")
