from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.simulator.playing import client, label, references, state
from workbench.simulator.fine_tuning import AUTO_EPOCHS
from workbench.simulator.server import running
from workbench.simulator.settings import FineTuning, Simulator
from workbench.simulator.training_file import InvalidFileError, count_tokens

BASE = "gpt-4.1-mini-2025-04-14"


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": label(i)}]} for i in range(count)]


def jsonl(values: list[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tuning = FineTuning(queued_s=0.5, running_s=0.7, accuracy=1.0, organization="acme")
    with running(Simulator(references=references(tmp_path_factory.mktemp("tuning"), 40), accuracy=0.1, fine_tuning=tuning)) as found:
        yield found


def upload(url: str, content: bytes, name: str = "train.jsonl") -> str:
    return client(url).files.create(file=(name, io.BytesIO(content)), purpose="fine-tune").id


def wait(url: str, identity: str) -> Any:
    deadline = time.monotonic() + 10
    while True:
        job = client(url).fine_tuning.jobs.retrieve(identity)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


def test_files_keep_every_byte(url: str) -> None:
    content = jsonl(rows()) + 'é\r\n\x00 "x" \n\n--b'.encode()
    identity = upload(url, content)
    files = client(url).files
    assert files.content(identity).read() == content
    found = files.retrieve(identity)
    assert (found.bytes, found.filename, found.purpose, found.status) == (len(content), "train.jsonl", "fine-tune", "processed")
    assert identity in [file.id for file in files.list()]
    assert files.delete(identity).deleted
    with pytest.raises(openai.NotFoundError):
        files.retrieve(identity)


def test_lists_come_in_pages(url: str) -> None:
    made = [upload(url, b"{}", f"{i}.jsonl") for i in range(5)]
    first = client(url).files.list(limit=2)
    assert [file.id for file in first.data] == made[:-3:-1] and first.has_more
    assert [file.id for file in client(url).files.list(limit=2)][:5] == made[::-1]  # the client turns the pages
    with pytest.raises(openai.BadRequestError):
        client(url).files.list(limit=0)


def test_a_job_from_upload_to_answers(url: str) -> None:
    content = jsonl(rows())
    before = state(url)["training_cost_usd"]
    job = client(url).fine_tuning.jobs.create(model=BASE, training_file=upload(url, content), suffix="desk")
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("queued", None, None)
    seen = [job.status]
    deadline = time.monotonic() + 10
    while seen[-1] != "succeeded" and time.monotonic() < deadline:
        seen.append(client(url).fine_tuning.jobs.retrieve(job.id).status)
        time.sleep(0.02)
    assert list(dict.fromkeys(seen)) == ["queued", "running", "succeeded"]
    done = client(url).fine_tuning.jobs.retrieve(job.id)
    assert done.trained_tokens == count_tokens(content) * AUTO_EPOCHS
    assert done.finished_at is not None and done.finished_at >= done.created_at
    tuned = str(done.fine_tuned_model)
    assert tuned.startswith(f"ft:{BASE}:acme:desk:")
    assert abs(state(url)["training_cost_usd"] - before - done.trained_tokens * 5 / 1e6) < 1e-12
    messages = [event.message for event in client(url).fine_tuning.jobs.list_events(job.id)]
    assert tuned in messages[0] and len(messages) == 3 and "Created" in messages[-1]
    assert tuned in [model.id for model in client(url).models.list()]
    right = 0
    for number in range(20):
        answer = client(url).chat.completions.create(model=tuned, messages=[{"role": "user", "content": f"question {number}"}])
        assert answer.model == tuned
        right += answer.choices[0].message.content == label(number)
    assert right == 20  # the base model would get 2
    assert job.id in [one.id for one in client(url).fine_tuning.jobs.list()]


def test_epochs_multiply_the_trained_tokens(url: str) -> None:
    content, file = jsonl(rows()), upload(url, jsonl(rows()))
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    jobs = [
        client(url).fine_tuning.jobs.create(model=BASE, training_file=file, method=method),
        client(url).fine_tuning.jobs.create(model=BASE, training_file=file, hyperparameters={"n_epochs": 5}),
    ]
    assert [wait(url, job.id).trained_tokens for job in jobs] == [count_tokens(content) * 2, count_tokens(content) * 5]


def test_a_bad_file_fails_the_job_with_the_reason(url: str) -> None:
    job = wait(url, client(url).fine_tuning.jobs.create(model=BASE, training_file=upload(url, jsonl(rows(9)))).id)
    assert (job.status, job.fine_tuned_model) == ("failed", None)
    assert job.error.code == "invalid_training_file" and job.error.param == "training_file"
    assert job.error.message == "Training file has 9 example(s), but must have at least 10 examples."
    good, bad = upload(url, jsonl(rows())), upload(url, b"no json")
    other = wait(url, client(url).fine_tuning.jobs.create(model=BASE, training_file=good, validation_file=bad).id)
    assert other.error.param == "validation_file"


def test_a_job_can_be_cancelled_until_it_is_finished(url: str) -> None:
    file = upload(url, jsonl(rows()))
    job = client(url).fine_tuning.jobs.create(model=BASE, training_file=file)
    assert client(url).fine_tuning.jobs.cancel(job.id).status == "cancelled"
    time.sleep(1.3)
    assert client(url).fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client(url).fine_tuning.jobs.cancel(job.id)


def test_what_cannot_be_started(url: str) -> None:
    jobs, file = client(url).fine_tuning.jobs, upload(url, jsonl(rows()))
    with pytest.raises(openai.NotFoundError):
        jobs.create(model="gpt-4.1", training_file=file)
    with pytest.raises(openai.BadRequestError, match="invalid training_file"):
        jobs.create(model=BASE, training_file="file-none")
    with pytest.raises(openai.BadRequestError):
        jobs.create(model=BASE, training_file=file, hyperparameters={"n_epochs": 0})
    with pytest.raises(openai.NotFoundError):
        jobs.retrieve("ftjob-none")
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        upload(url, b"{}", "train.txt")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client(url).files.create(file=("a.jsonl", b"{}"), purpose="vision")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "not UTF-8"),
        (b"{", "Line 1 is not valid JSON"),
        (b"[" * 100_000, "Line 1 is not valid JSON"),
        (jsonl([[]]), "'messages' must be a list"),
        (jsonl([{"messages": []}]), "'messages' must be a list"),
        (jsonl([{"messages": [{"role": "boss", "content": "x"}]}]), "Line 1, message 1: 'role'"),
        (jsonl([{"messages": [{"role": ["user"], "content": "x"}]}]), "Line 1, message 1: 'role'"),
        (jsonl([{"messages": [{"role": "user", "content": None}]}]), "'content' must be text"),
        (jsonl([{"messages": [{"role": "user", "content": "x"}]}]), "from the assistant"),
        (b"", "Training file has 0 example(s)"),
    ],
)
def test_what_makes_a_training_file_invalid(content: bytes, said: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        count_tokens(content)
    assert said in str(caught.value)
