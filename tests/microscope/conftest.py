"""What the microscope's tests share."""

import pytest

from tests.cli import Sesmo, runner


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sesmo:
    return runner(capsys, monkeypatch)
