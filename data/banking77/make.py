"""Make Banking77's train.jsonl and test.jsonl, without repeated questions; see README.md beside this file.

python data/banking77/make.py [--from FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from workbench.data.example import Example
from workbench.data.problems import Problems
from workbench.data.readers import read
from workbench.data.rows import rows
from workbench.data.splits import distinct
from workbench.errors import DataError, WorkbenchError
from workbench.recipe.schema import Columns, Hub, Task
from workbench.sources.fetch import default_cache, materialise
from workbench.sources.reference import parse

HERE = Path(__file__).parent
HUB = "hf://datasets/mteb/banking77@0fd18e25b25c072e09e0d92ab615fda904d66300/{split}.jsonl"
LABEL_COLUMNS = ("category", "label_text", "label")  # PolyAI's CSV, the hub's files, this script's own form


def published(split: str, folder: Path | None) -> Path:
    """The file of a split, as published: in `folder`, or from the hub.

    Raises:
        WorkbenchError: it is not there.
    """
    if folder is None:
        return materialise(parse(HUB.format(split=split), base=HERE), cache=default_cache(), hub=Hub()).path
    for suffix in (".csv", ".jsonl"):
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise DataError(f"there is neither {split}.csv nor {split}.jsonl", where=str(folder), fix="name the folder with both splits")


def questions(path: Path) -> list[Example]:
    """The rows of a file, whatever its label column is called.

    Raises:
        WorkbenchError: the file cannot be read or has no label column.
    """
    first = next((row for _, row in rows(path, Problems(path))), {})
    label = next((name for name in LABEL_COLUMNS if name in first), LABEL_COLUMNS[0])
    columns = Columns(prompt="text", completion=label)
    return read(path, format="prompt_completion", columns=columns, task=Task(metric="exact_match"))


def write(examples: Iterable[Example], path: Path) -> None:
    """Write one {"text", "label"} a line."""
    lines = (json.dumps({"text": e.prompt, "label": e.references[0]}, ensure_ascii=False) + "\n" for e in examples)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def make(folder: Path | None, out: Path) -> dict[str, int]:
    """Write both splits into `out`, and return their sizes.

    Raises:
        WorkbenchError: a published file is missing or cannot be read.
    """
    test = distinct(questions(published("test", folder))).examples
    judged = {example.content_key for example in test}
    train = [example for example in distinct(questions(published("train", folder))).examples if example.content_key not in judged]
    out.mkdir(parents=True, exist_ok=True)
    write(train, out / "train.jsonl")
    write(test, out / "test.jsonl")
    return {"train": len(train), "test": len(test)}


def main() -> int:
    """Make the files and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", type=Path, help="folder with the published train and test (default: from the hub)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into (default: beside this script)")
    arguments = parser.parse_args()
    try:
        sizes = make(arguments.folder, arguments.out)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(arguments.out, *(f"{count:,} {split}" for split, count in sizes.items()), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
