"""Which MLflow, and where its things lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit


def tracking_uri(state: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, else the SQLite store in the state folder (`.workbench`)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(state / 'mlflow.db').absolute()}"


def artifact_root(uri: str) -> Path | None:
    """Where the artifacts of a SQLite store go: `mlartifacts` beside it. None where MLflow decides."""
    return database(uri).absolute().parent / "mlartifacts" if uri.startswith("sqlite:///") else None


def ui_command(state: Path) -> list[str]:
    """The command that opens MLflow's UI: on the local store, or in the browser where a server is used."""
    uri = tracking_uri(state)
    if urlsplit(uri).scheme in ("http", "https"):
        return [sys.executable, "-m", "webbrowser", public(uri)]
    root = artifact_root(uri)
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *(["--default-artifact-root", root.as_uri()] if root else [])]


def public(uri: str) -> str:
    """The address without user and password."""
    address = urlsplit(uri)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl() if address.netloc else uri


def database(uri: str) -> Path:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///"))
