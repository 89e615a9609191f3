"""What went wrong, as a status and one sentence."""

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from db.engine import store_errors
from sesmo_live.errors import ImageError, SesmoError, StoreError, UnknownNameError, UsageError
from sesmo_live.web import pages
from sesmo_live.web.explaining import BusyError
from sesmo_live.web.shapes import Problem

log = logging.getLogger(__name__)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "foreign Host, or a body that cannot be read"},
    404: {"model": Problem, "description": "not in the database"},
    422: {"model": Problem, "description": "malformed, or not to be computed from what there is"},
    503: {"model": Problem, "description": "the database cannot be read now"},
}
"""For OpenAPI: what every question may meet."""

WRITE_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    401: {"model": Problem, "description": "no token"},
    403: {"model": Problem, "description": "foreign Origin"},
    413: {"model": Problem, "description": "too large"},
}
"""For OpenAPI: what every change may meet."""


def status_of(error: Exception) -> int:
    """Return the status that an error of ours is told with."""
    if isinstance(error, UnknownNameError | ImageError):
        return 404
    if isinstance(error, UsageError):
        return 422
    return 503 if isinstance(error, StoreError | BusyError) else 500


def answer(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a problem as JSON."""
    return JSONResponse({"detail": sentence}, status, headers)


def tell_problems(app: FastAPI) -> None:
    """Have every error told as a status and one sentence."""

    @app.exception_handler(SesmoError)
    def _ours(_request: Request, error: SesmoError) -> JSONResponse:
        return answer(status_of(error), str(error))

    @app.exception_handler(DBAPIError)
    def _database(request: Request, error: DBAPIError) -> JSONResponse:
        try:
            with store_errors(request.app.state.url):
                raise error
        except StoreError as told:
            log.error("%s", told)
            return answer(503, "the database cannot be used now; see what the server says of it")

    @app.exception_handler(RequestValidationError)
    def _malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"][1:]) or "the body"
        return answer(422, f"{where}: {first['msg']}; correct it")

    @app.exception_handler(HTTPException)
    def _plain(request: Request, error: HTTPException) -> Response:
        if "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/"):
            return pages.error_page(error.status_code, f"There is no page {request.url.path}; begin with the plates.")
        headers = dict(error.headers) if error.headers else None
        return answer(error.status_code, str(error.detail), headers)
