"""The README keeps its word: its example runs, its commands exist, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.timeout(240)
def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scored=12, refused=0, failed=0" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(well, round(float(hours))) for well, hours, *_ in lines] == [("A03", 0), ("A03", 48)]
    assert float(lines[1][2]) > float(lines[0][2])  # etoposide has had 48 hours
    assert "not for biological conclusions" in done.stderr


def test_every_command_in_the_documents_exists() -> None:
    import typer.main

    from sesmo_live.cli.app import app

    group = typer.main.get_command(app)
    known = set(group.commands)  # type: ignore[attr-defined]
    pages = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    for page in pages:
        for block in re.findall(r"`([^`\n]+)`|```sh\n(.*?)```", page, re.DOTALL):
            for word in re.findall(r"sesmo-live ([a-z][a-z-]*)", "".join(block)):
                assert word in known, word


def test_every_command_is_in_the_documents() -> None:
    import typer.main

    from sesmo_live.cli.app import app

    pages = README + "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"\b{name}\b", pages), name


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
