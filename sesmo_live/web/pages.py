"""The pages: server-made HTML over the same answers as the API."""

from fastapi import APIRouter

router = APIRouter(include_in_schema=False)
