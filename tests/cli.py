"""The command line in this process: one command to its end, without the seconds that a new Python takes."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sesmo_live.cli import main
from tests.conftest import write_image


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Sesmo = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sesmo:
    """Return a function that runs one command, as the installed program does, and checks its exit code."""

    def run(*words: object, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["sesmo-live", *map(str, words)])
        capsys.readouterr()
        ended = 0
        try:
            main()
        except SystemExit as end:
            ended = end.code if isinstance(end.code, int) else int(bool(end.code))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert ended == code, said.err + said.out
        return Done(ended, said.out, said.err)

    return run


def sentence(done: Done) -> str:
    """Return what a refused command said: one sentence on standard error and nothing else."""
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    return line


def write_wells(folder: Path, wells: str = "A01 A02", times: int = 1) -> Path:
    """Write small images of blobs in our own layout, one for each well and time point."""
    for number, well in enumerate(wells.split()):
        for time in range(1, times + 1):
            write_image(folder / f"{well}_f1_t{time}_cPhase_z0.tif", 10 * number + time)
    return folder
