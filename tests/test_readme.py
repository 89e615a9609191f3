"""The README keeps its word: its example runs, its commands exist, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.timeout(240)
def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scored=11, refused=1, failed=0" in done.stdout  # the virtual stage lost its focus once
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


def commands() -> dict[str, Any]:
    """Return every command by its whole name, as `sesmo-live db check`."""
    import typer.main

    from sesmo_live.cli.app import app

    def walk(command: Any, name: str) -> dict[str, Any]:
        below = getattr(command, "commands", None)
        if below is None:
            return {name: command}
        return {full: leaf for key, found in below.items() for full, leaf in walk(found, f"{name} {key}").items()}

    return walk(typer.main.get_command(app), "sesmo-live")


def sections() -> dict[str, str]:
    """Return the sections of docs/commands.md by their headings."""
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    return {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_has_its_section_with_every_option_and_an_example(name: str) -> None:
    text, shared = sections()[name], sections()["Options of many commands"]
    command = commands()[name]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    for parameter in command.params:
        for option in parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text + shared), f"{name} {option}"
    examples = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert examples
    for example in examples:
        assert example.startswith(name)
        used = [word for word in shlex.split(example) if word.startswith("--")]
        assert set(used) <= options, example


def test_every_section_is_of_a_command_that_exists() -> None:
    for heading in sections():
        assert heading in commands() or not heading.startswith("sesmo-live"), heading


def test_examples_are_read_by_the_command_line() -> None:
    """Each example's options have values of their kind, and nothing that is required is missing."""
    for name, command in commands().items():
        for example in re.findall(rf"^{name}.*$", sections()[name], re.MULTILINE):
            command.make_context(name, shlex.split(example.removeprefix(name)))
