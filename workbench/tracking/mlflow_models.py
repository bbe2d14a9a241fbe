"""A model in MLflow: logged in the transformers flavour, and registered as a version. Repeating it leaves nothing twice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

DIGEST_TAG = "workbench.artifact"
_SCRATCH = "tracking.model."


def log_model(client: MlflowClient, experiment: str, run_id: str, body: dict[str, Any], *, checkpoint: Path, scratch: Path) -> None:
    """One logged model and one registered version per digest, linked with every run that reports it.

    Args:
        client: of the MLflow that gets it.
        experiment: id of the experiment.
        run_id: MLflow's id of the run that reports the model.
        body: the journal's record: `digest`, `tags`, `registered_name`, `max_new_tokens`.
        checkpoint: a folder with config, weights and tokenizer.
        scratch: a folder on a disk that takes the checkpoint once more; nothing stays there.
    """
    tags = {key: value[:MAX_TAG_VAL_LENGTH] for key, value in body["tags"].items()} | {DIGEST_TAG: body["digest"]}
    found = client.search_logged_models([experiment], filter_string=f"tags.`{DIGEST_TAG}` = '{body['digest']}'")
    model = next(iter(found), None) or client.create_logged_model(experiment, name="model", source_run_id=run_id, tags=tags)
    if model.status != LoggedModelStatus.READY:  # new, or a synchronisation was killed during the upload
        _upload(client, model, run_id, tags, body["max_new_tokens"], checkpoint, scratch)
    outputs = client.get_run(run_id).outputs
    if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    if body["registered_name"] is not None:
        _register(client, model, run_id, body["registered_name"], tags)


def _upload(
    client: MlflowClient, model: LoggedModel, run_id: str, tags: dict[str, str], max_new_tokens: int, checkpoint: Path, scratch: Path
) -> None:
    """Write the checkpoint in MLflow's transformers flavour (files are copied, no weights are loaded) and store it."""
    import mlflow.transformers
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string)])
    signature = ModelSignature(text, text, ParamSchema([ParamSpec("max_new_tokens", DataType.long, max_new_tokens)]))
    written = Model(artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id)
    for left_over in scratch.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left_over)  # of a synchronisation that was killed; the journal's lock says that none is running
    # Beside the journal, not in /tmp, which is often small and in memory.
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=scratch) as parent:
        folder = Path(parent, "model")
        with _pipeline_as_class():
            mlflow.transformers.save_model(
                str(checkpoint.resolve()), str(folder), task="text-generation", signature=signature, metadata=tags,
                mlflow_model=written, pip_requirements=_requirements(),
            )  # fmt: skip
        # MLflow invents a licence text that points to a page of the hub named like our folder.
        (folder / "LICENSE.txt").unlink(missing_ok=True)
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _register(client: MlflowClient, model: LoggedModel, run_id: str, name: str, tags: dict[str, str]) -> None:
    if client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{tags[DIGEST_TAG]}'"):
        return
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not `models:/<id>`, which MLflow's SQL registry would look up at the address that is set globally, in place of the client's.
    client.create_model_version(name, model.artifact_location, run_id, tags, model_id=model.model_id)


def point(client: MlflowClient, body: dict[str, Any]) -> None:
    """Let an alias name the version of a digest: `registered_name`, `alias` and `digest` of the journal's record.

    Raises:
        ValueError: there is no such version, perhaps because MLflow refused it.
    """
    name, digest = body["registered_name"], body["digest"]
    version = next(iter(client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'")), None)
    if version is None:
        raise ValueError(f"{name} has no version of {digest}, so `{body['alias']}` stays where it is")
    client.set_registered_model_alias(name, body["alias"], version.version)


@contextmanager
def _pipeline_as_class() -> Iterator[None]:
    """Let MLflow find the class of the pipeline in transformers' table of tasks.

    transformers 5.23 keeps a dotted name there and takes a class as well; MLflow 3.17 (`build_flavor_config_from_local_checkpoint`)
    takes only a class.
    """
    from transformers import TextGenerationPipeline
    from transformers.pipelines import PIPELINE_REGISTRY

    tasks = PIPELINE_REGISTRY.supported_tasks
    before = tasks["text-generation"]
    tasks["text-generation"] = {**before, "impl": TextGenerationPipeline}
    try:
        yield
    finally:
        tasks["text-generation"] = before


def _requirements() -> list[str]:
    """What it takes to load the model; without local parts of versions (`+cpu`), which no index knows."""
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in ("accelerate", "torch", "transformers")]
