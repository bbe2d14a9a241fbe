"""MLflow without its chatter, its telemetry and its patience."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_REQUEST_S = 10


@contextmanager
def quiet() -> Iterator[None]:
    """Run MLflow without its chatter, its telemetry and its two minutes of patience with a dead server.

    All that is changed is put back, but for telemetry, which stays off unless the user has turned it on.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    settings = {
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_REQUEST_S)),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),
    }
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3", "huggingface_hub")]
    with environment_variables(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ImportError):  # reported where it is used
            import mlflow  # noqa: F401 - sets up its loggers, whose levels are changed next
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def environment_variables(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
