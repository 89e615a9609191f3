"""The API keeps what its OpenAPI page promises, whatever it is asked: no 5xx, nothing changed without the token."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sesmo_live.web.app import create_app
from tests.web import PLATE, TOKEN, scored_plate

__all__ = ["scored_plate"]

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
KNOWN = {"name": PLATE, "well": "B01", "image_id": 3, "idx": 0, "incident_id": 1, "suffix": "csv"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def schema(scored_plate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return the schema of an application over a database of its own, which the cases may change."""
    db = tmp_path_factory.mktemp("schema") / "s.db"
    with closing(sqlite3.connect(scored_plate / "s.db")) as source, closing(sqlite3.connect(db)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = WAL")
    app = create_app(str(db), token=TOKEN, hosts=["localhost", "testserver"])
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    app.state.engine.dispose()


def operations(schema: Any) -> list[Any]:
    return [found.ok() for found in schema.get_all_operations()]


def run_cases(schema: Any, each: int) -> Counter[int]:
    """Ask `each` generated cases of every operation, changes without the token and with it; count the statuses."""
    statuses: Counter[int] = Counter()

    def ask(operation: Any) -> None:
        @given(case=operation.as_strategy(), known=st.booleans())
        @settings(
            max_examples=each, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
        )
        def cases(case: Any, known: bool) -> None:
            if known:  # else hardly a case would meet anything
                case.path_parameters |= {name: KNOWN[name] for name in case.path_parameters}
                case.query = {name: value for name, value in case.query.items() if name not in ("run", "model")}
            if operation.method.upper() != "GET":
                unauthorised = case.call(headers={"Authorization": "Bearer wrong"})
                statuses[unauthorised.status_code] += 1
                assert unauthorised.status_code in (401, 413), case.as_curl_command()
            response = case.call(headers=BEARER)
            statuses[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        cases()

    for operation in operations(schema):
        ask(operation)
    print(f"{statuses.total()} cases of {len(operations(schema))} operations: {dict(sorted(statuses.items()))}")  # noqa: T201
    return statuses


def check(statuses: Counter[int], least: int) -> None:
    assert statuses.total() >= least
    assert not [status for status in statuses if status >= 500 and status != 503]
    assert statuses[503] == 0
    assert statuses[200] > 50  # not only refusals
    assert statuses[401] > 0
    assert statuses[404] > 0
    assert statuses[422] > 0


def test_hundreds_of_cases_find_no_fault(schema: Any) -> None:
    check(run_cases(schema, 8), 200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_cases_find_no_fault(schema: Any) -> None:
    check(run_cases(schema, 100), 2000)


def test_the_schema_is_complete(schema: Any) -> None:
    raw = schema.raw_schema
    assert raw["openapi"].startswith("3.1")
    for path, methods in raw["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (path, method)
            assert "content" in operation["responses"]["200"], (path, method)
            if method != "get":
                assert {"401", "403", "404", "413", "422"} <= operation["responses"].keys(), (path, method)
