"""What the records of a journal become in MLflow. Every step may be repeated without leaving anything twice.

Only MLflow's client API is used, never its "active run", so nothing global changes in a process that uses MLflow itself.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import requests
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import (
    MAX_BATCH_LOG_REQUEST_SIZE,
    MAX_DATASET_DIGEST_SIZE,
    MAX_DATASET_NAME_SIZE,
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
    path_not_unique,
)

from workbench.tracking.journal import Record, read
from workbench.tracking.mlflow_models import log_model, point
from workbench.tracking.progress import Progress
from workbench.tracking.quiet import environment_variables
from workbench.tracking.target import artifact_root

ID_TAG = "workbench.id"

_RETRY_LATER = (401, 403, 408, 429)  # no right to it, or too fast: the record is not at fault

Entity: TypeAlias = Metric | Param | RunTag


class StoreReplacedError(Exception):
    """MLflow knows nothing of a run that it has had: there is another database behind the address."""


class Replay:
    """One synchronisation of one journal.

    Attributes:
        refused: what MLflow will never take, one line each.
    """

    def __init__(self, directory: Path, uri: str, progress: Progress, *, upload_s: int) -> None:
        self.refused: list[str] = []
        self._upload_s = upload_s
        self._directory, self._uri, self._progress = directory, uri, progress
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._experiment = ""
        self._runs: dict[str, str | None] = {run: self._still_there(known) for run, known in progress.runs.items()}
        self._identify()

    def send(self, records: Sequence[Record]) -> None:
        """Send one record, or several of params, metrics and tags.

        Raises:
            MlflowException, requests.RequestException, OSError: MLflow cannot take anything now.
        """
        kind = records[0].body["kind"]
        if kind in ("params", "metrics", "tags"):
            self._measurements([record.body for record in records])
        elif kind == "start":
            self._start(records[0].body)
        elif kind != "journal":
            self._single(records[0].body)

    def _identify(self) -> None:
        """Find or make the experiment named in the first line of the journal."""
        name = next(record.body["experiment"] for record in read(self._directory) if record.body["kind"] == "journal")
        found = self._client.get_experiment_by_name(name)
        if found is None:
            root = artifact_root(self._uri)
            location = root / re.sub(r"[^\w.-]", "_", name) if root else None
            try:
                self._experiment = self._client.create_experiment(name, artifact_location=location.as_uri() if location else None)
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # made by another process meanwhile
                assert found is not None
        if found.lifecycle_stage == "deleted":
            raise ValueError(f"the experiment {name!r} was deleted in MLflow: restore it, or set `tracking.experiment` in the recipe")
        self._experiment = found.experiment_id

    def _still_there(self, run_id: str) -> str | None:
        """The id, or None if somebody has deleted the run in MLflow; then it stays deleted."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise StoreReplacedError from error
            raise
        return run_id if run.info.lifecycle_stage == "active" else None

    def _start(self, body: dict[str, Any]) -> None:
        local = body["run"]
        if local not in self._runs:
            found = self._find(local) or self._create(body)
            self._progress.runs[local] = found.info.run_id
            self._progress.save()  # before anything hangs on it
            self._runs[local] = found.info.run_id if found.info.lifecycle_stage == "active" else None
        run_id = self._runs[local]
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._measurements([{**body, "kind": "tags", "values": body["tags"]}])

    def _find(self, local: str) -> Run | None:
        """The MLflow run of a local one. A request that was retried may have made two: the older one counts."""
        runs = self._client.search_runs(
            [self._experiment], f"tags.`{ID_TAG}` = '{local}'", run_view_type=ViewType.ALL, order_by=["attributes.start_time ASC"]
        )
        for double in runs[1:]:
            if double.info.lifecycle_stage == "active":
                self._client.delete_run(double.info.run_id)
        return runs[0] if runs else None

    def _create(self, body: dict[str, Any]) -> Run:
        tags = {ID_TAG: body["run"], "mlflow.source.name": "workbench", "mlflow.source.type": "LOCAL"}
        if body["parent"] is not None:
            parent = self._progress.runs.get(body["parent"])
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
        return self._client.create_run(self._experiment, start_time=body["time"], tags=tags, run_name=body["name"])

    def _measurements(self, bodies: Sequence[dict[str, Any]]) -> None:
        by_run: dict[str, list[Entity]] = {}
        params: dict[tuple[str, str], str] = {}
        for body in bodies:
            run_id = self._runs.get(body["run"])
            if run_id is None:
                continue
            entities = by_run.setdefault(run_id, [])
            for name, value in body["values"].items():
                key = allowed_name(name)
                if body["kind"] == "metrics":
                    entities.append(Metric(key, float(value), body["time"], body["step"]))
                elif body["kind"] == "tags":
                    entities.append(RunTag(key, self._shortened(run_id, "tag", key, value, MAX_TAG_VAL_LENGTH)))
                elif params.setdefault((run_id, key), value) == value:
                    entities.append(Param(key, self._shortened(run_id, "param", key, value, MAX_PARAM_VAL_LENGTH)))
                else:
                    self.refused.append(f"parameter {name}: MLflow keeps its first value, not {value[:100]!r}")
        for run_id, entities in by_run.items():
            for chunk in _chunks(entities):
                self._log(run_id, chunk)

    def _shortened(self, run_id: str, kind: str, key: str, value: str, limit: int) -> str:
        """The value, or as much of it as MLflow takes; then the whole is an artifact."""
        if len(value) <= limit:
            return value
        self._client.log_text(run_id, value, f"long_values/{kind}.{re.sub(r'[^A-Za-z0-9_.-]', '_', key)[:100]}.txt")
        return value[: limit - 1] + "…"

    def _log(self, run_id: str, entities: Sequence[Entity]) -> None:
        """Send them together; if MLflow refuses, in halves, until the guilty one is alone."""
        metrics = [entity for entity in entities if isinstance(entity, Metric)]
        params = list({entity.key: entity for entity in entities if isinstance(entity, Param)}.values())
        tags = list({entity.key: entity for entity in entities if isinstance(entity, RunTag)}.values())  # the last one counts
        try:
            self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags, synchronous=True)
        except Exception as error:
            if not _is_refusal(error):
                raise
            if len(entities) == 1:
                self.refused.append(f"{type(entities[0]).__name__} {entities[0].key}: {_line(error)}")
                return
            middle = len(entities) // 2
            self._log(run_id, entities[:middle])
            self._log(run_id, entities[middle:])

    def _single(self, body: dict[str, Any]) -> None:
        run_id = self._runs.get(body["run"])
        if run_id is None:
            return
        act: Callable[[str, dict[str, Any]], None] = getattr(self, f"_send_{body['kind']}")
        try:
            act(run_id, body)
        except Exception as error:
            if not _is_refusal(error):
                raise
            what = next((body[key] for key in ("path", "artifact_path", "name", "alias") if body.get(key)), "")
            self.refused.append(f"{body['kind']} {what}: {_line(error)}")

    def _send_end(self, run_id: str, body: dict[str, Any]) -> None:
        self._client.set_terminated(run_id, body["status"], end_time=body["time"])

    def _send_text(self, run_id: str, body: dict[str, Any]) -> None:
        self._client.log_text(run_id, body["text"], _checked(body["artifact_path"]))

    def _send_file(self, run_id: str, body: dict[str, Any]) -> None:
        path = self._path(body)
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with self._patience():
            log(run_id, str(path), _checked(body["artifact_path"]))

    def _send_dataset(self, run_id: str, body: dict[str, Any]) -> None:
        source_type, source = _dataset_source(body["source"])
        dataset = Dataset(
            name=body["name"][:MAX_DATASET_NAME_SIZE],
            digest=body["digest"][:MAX_DATASET_DIGEST_SIZE],
            source_type=source_type,
            source=json.dumps(source),
            profile=json.dumps({"num_rows": body["rows"]}),
        )
        tags = {"mlflow.data.context": body["context"], "workbench.digest": body["digest"], "workbench.rows": str(body["rows"])}
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()])])

    def _send_model(self, run_id: str, body: dict[str, Any]) -> None:
        with self._patience():
            log_model(self._client, self._experiment, run_id, body, checkpoint=self._path(body), scratch=self._directory)

    def _send_alias(self, run_id: str, body: dict[str, Any]) -> None:
        point(self._client, body)

    def _patience(self) -> AbstractContextManager[None]:
        """Uploads may take longer than other requests."""
        return environment_variables({"MLFLOW_HTTP_REQUEST_TIMEOUT": str(self._upload_s)})

    def _path(self, body: dict[str, Any]) -> Path:
        path = self._directory / str(body["path"])
        if not path.exists():
            raise FileNotFoundError("it is no longer there")
        return path


def _checked(artifact_path: str | None) -> str | None:
    """The path, unless it leads out of the run's artifacts: MLflow would call that a fault of its own, as if it were away."""
    if artifact_path and path_not_unique(artifact_path):
        raise ValueError(f"{artifact_path!r} is not a plain relative path")
    return artifact_path


def allowed_name(name: str) -> str:
    """The nearest name that MLflow takes for a metric, a parameter or a tag: `recall@5` becomes `recall_5`."""
    key = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name).replace("..", "_")).strip("/")
    if key in ("", "."):
        key = "_"
    if len(key) > MAX_ENTITY_KEY_LENGTH:
        key = f"{key[: MAX_ENTITY_KEY_LENGTH - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return key


def _chunks(entities: Sequence[Entity]) -> Iterator[list[Entity]]:
    """As many as one request may hold: 1000 in all, 100 params, 100 tags, half of the largest number of bytes."""
    chunk: list[Entity] = []
    counts = {Metric: 0, Param: 0, RunTag: 0}
    size = 0
    for entity in entities:
        # Requests are indented JSON with every non-ASCII character escaped; 200 covers a metric's numbers and the indents.
        bytes_ = len(json.dumps([entity.key, "" if isinstance(entity, Metric) else entity.value])) + 200
        full = counts[type(entity)] == (MAX_METRICS_PER_BATCH if isinstance(entity, Metric) else MAX_PARAMS_TAGS_PER_BATCH)
        if chunk and (full or len(chunk) == MAX_METRICS_PER_BATCH or size + bytes_ > MAX_BATCH_LOG_REQUEST_SIZE // 2):
            yield chunk
            chunk, counts, size = [], dict.fromkeys(counts, 0), 0
        chunk.append(entity)
        counts[type(entity)] += 1
        size += bytes_
    if chunk:
        yield chunk


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow will never take the record, in contrast to a server or a disk that is away for now."""
    status = None
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    if status is not None:
        return 400 <= status < 500 and status not in _RETRY_LATER
    return isinstance(error, FileNotFoundError) or not isinstance(error, OSError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _dataset_source(source: str) -> tuple[str, dict[str, Any]]:
    """MLflow's type of a source and how it writes it down, so that `mlflow.data.get_source` reads it back."""
    if re.match(r"https?://", source):
        return "http", {"url": source}
    if re.match(r"\w+://", source):  # pypi://, hf://: MLflow cannot load these
        return "code", {"tags": {"workbench.source": source}}
    return "local", {"uri": str(Path(source).absolute())}
