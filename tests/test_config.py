"""Settings: strict, helpful, and as documented in config.toml."""

import platform
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from sesmo_live.cli.options import settings_for
from sesmo_live.config import Settings, Watch, load_settings, settings_from
from sesmo_live.errors import ConfigError

CONFIG = Path(__file__).parents[1] / "config.toml"


def test_the_shipped_file_states_the_defaults() -> None:
    shipped = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    assert settings_from(shipped, "config.toml") == Settings()


@pytest.mark.parametrize("section", [name for name in Settings.model_fields if name != "watch"])
def test_every_key_of_a_section_is_documented_there(section: str) -> None:
    text = CONFIG.read_text(encoding="utf-8").split(f"\n[{section}]\n")[1].split("\n[")[0].split("\n# One block")[0]
    keys = re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE)
    assert set(keys) == set(Settings.model_fields[section].default.model_dump())


def test_every_key_of_a_watched_folder_is_documented_there() -> None:
    text = CONFIG.read_text(encoding="utf-8").split("[[watch]]")[1]
    assert set(re.findall(r"^# (\w+) = ", text, re.MULTILINE)) == set(Watch.model_fields)


def test_every_field_is_described() -> None:
    sections: list[type[BaseModel]] = [
        type(getattr(Settings(), name)) for name in Settings.model_fields if name != "watch"
    ]
    sections.append(Watch)
    for section in sections:
        for name, info in section.model_fields.items():
            assert info.description, name


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[scorring]\n", "no setting 'scorring'; did you mean 'scoring'"),
        ("[scoring]\nmodle = 'x'\n", "no setting 'scoring.modle'; did you mean 'model'"),
        ("[[watch]]\nfolder = 'a'\nchanel = '1'\n", "no setting 'watch.1.chanel'; did you mean 'channel'"),
        ("[watching]\nscan_interval_s = 0\n", "watching.scan_interval_s: Input should be greater than 0"),
        ("[service]\nname = '*'\n", "'*' stands for shared folders"),
        ("[[watch]]\nfolder = 'a'\nplate_wells = 97\n", "plates have 6, 12, 24"),
        ("[[watch]]\nfolder = 'a'\ntimezone = 'Berlin'\n", "'Berlin' is no time zone; write one such as Europe/Berlin"),
        ("[[watch]]\nplate = 'P'\n", "watch.1.folder: Field required"),
        ("[scoring\n", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_explained_in_one_sentence(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_settings(tmp_path / "none.toml")


def test_paths_count_from_the_file_and_times_from_the_zone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "[[watch]]\nfolder = 'images'\ntimezone = 'Europe/Berlin'\ntreated_at = 2026-07-01T10:00:00\n", encoding="utf-8"
    )
    settings = load_settings(path)
    assert settings.watch[0].folder == tmp_path / "images"
    assert settings.database.url == str(tmp_path / "sesmo.db")
    treated = settings.watch[0].treated_at
    assert treated is not None
    assert treated.astimezone(UTC) == datetime(2026, 7, 1, 8, tzinfo=UTC)


def test_a_daemon_is_called_by_its_option_its_setting_or_its_computer() -> None:
    def daemon(name: str | None) -> str:
        return settings_for(None, db=None, model=None, no_refuse=False, watch={}, name=name).service.daemon

    assert daemon("scope1") == "scope1"
    assert daemon(None) == platform.node()
    assert settings_from({"service": {"name": "scope2"}}, "test").service.daemon == "scope2"
