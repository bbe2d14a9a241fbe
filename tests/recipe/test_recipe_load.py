"""What the recipe language accepts, and what it says about everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe.recipes import FULL, SMALL, problems, try_load, write
from workbench.errors import RecipeError
from workbench.recipe.load import load
from workbench.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]


def test_a_small_recipe_gets_every_default_and_knows_every_origin(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SMALL), ["train.rank=4"])
    assert loaded.recipe.data.split.train == 0.7
    assert loaded.recipe.train is not None and loaded.recipe.train.rank == 4
    origins = loaded.origins
    assert origins["data", "format"].where == f"{tmp_path}/recipe.yaml:5:11"
    assert origins["data", "format"].label == "recipe.yaml:5"
    assert origins["model", "source"].where.endswith(":2:17")
    assert origins["train", "rank"].where == "--set train.rank=4"
    assert origins["train", "epochs"].kind == "default"
    assert origins["quantize",].kind == "default"
    assert loaded.text == SMALL and loaded.base == tmp_path


def test_every_section_loads(tmp_path: Path) -> None:
    assert load(write(tmp_path, FULL)).recipe == Recipe.model_validate(FULL)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path: Path) -> None:
    assert load(path).recipe.name


def test_loading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from workbench.recipe.load import load; from workbench.recipe.resolved import dump\n"
        f"dump(load(Path({str(ROOT / 'recipes/quickstart.yaml')!r}), ['train.rank=4']))\n"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'scipy', 'transformers', 'mlflow', 'jsonschema', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: 1E-3", "learning_rate", 1e-3),
        ("learning_rate: .5", "learning_rate", 0.5),
        ("epochs: 1", "epochs", 1.0),
        ("rank: 0x10", "rank", 16),
        ("rank: 0o20", "rank", 16),
        ("rank: 010", "rank", 10),
        ("packing: FALSE", "packing", False),
        ("modules_to_save: [on, off, yes, no, y, n]", "modules_to_save", ["on", "off", "yes", "no", "y", "n"]),
        ("modules_to_save: [2024-01-01, 1:30, 1_000, 0b1, .., ==]", "modules_to_save", ["2024-01-01", "1:30", "1_000", "0b1", "..", "=="]),
        ("layers: ~", "layers", None),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(tmp_path: Path, line: str, key: str, value: object) -> None:
    train = load(write(tmp_path, f"{SMALL}train:\n  {line}\n")).recipe.train
    got = getattr(train, key)
    assert got == value and type(got) is type(value)


def test_anchors_aliases_and_merge_keys(tmp_path: Path) -> None:
    text = SMALL + (
        "evaluate:\n  guards:\n    - &first {name: a, source: a.jsonl, format: chat, floor: 0.5}\n    - {<<: *first, name: b}\n"
        "    - {name: c, <<: [{floor: 0.1}, *first]}\n"
    )
    loaded = load(write(tmp_path, text))
    assert [(guard.name, guard.floor) for guard in loaded.recipe.evaluate.guards] == [("a", 0.5), ("b", 0.5), ("c", 0.1)]
    assert loaded.origins["evaluate", "guards", 1, "floor"].line == 10  # where it is written
    # An override of one alias leaves the other alone.
    both = load(write(tmp_path, f"{SMALL}quantize: [&q {{method: gptq}}, *q]\ntrain: {{}}\n"), ["quantize.0.bits=8"]).recipe.quantize
    assert [quantizer.bits for quantizer in both] == [8, 4]


def test_document_marks_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    text = "\ufeff%YAML 1.2\n---\n" + SMALL + "...\n"
    assert load(write(tmp_path, text.replace("\n", "\r\n"))).recipe.name == "tiny"


# (recipe, (where, part of what, part of fix)...): each list is complete, in order.
REFUSED = {
    "unknown key, near": ("train: {rnak: 4}", [("8:9", "unknown key `rnak` in `train`", "did you mean `rank`?")]),
    "unknown key, other section": ("rank: 4", [("8:1", "unknown key `rank`", "`rank` belongs to `train`")]),
    "unknown key, section elsewhere": ("split: {seed: 1}", [("8:1", "unknown key `split`", "`split` belongs to `data` or `evaluate`")]),
    "unknown key, dotted": ("train.rank: 4", [("8:1", "unknown key `train.rank`", "write `rank` indented under `train`")]),
    "unknown key, like no other": ("hub: {zzzzzz: 4}", [("8:7", "unknown key `zzzzzz`", "the keys here are `endpoint` and `token_env`")]),
    "unknown key of the other kind": (
        "train: {}\nquantize: [{method: gptq, type: nf4}]",
        [("9:27", "unknown key `type` in `quantize.0`", "`type` belongs to `quantize[bitsandbytes]`")],
    ),
    "keys are texts": ("1: 2\nnull: 3", [("8:1", "unknown key `1`", ""), ("9:1", "unknown key `null`", "")]),
    "labels that are not texts": (
        "evaluate: {guards: [{name: g, source: s, format: chat, task: {metric: label, labels: [0, 1.0, null, true]}}]}",
        [
            ("8:87", "`evaluate.guards.0.task.labels.0` must be a text that is not empty, but is the number 0", 'quote it: "0"'),
            ("8:90", "the number 1.0", 'quote it: "1.0"'),
            ("8:95", "but is `null`", 'quote it: "null"'),
            ("8:101", "but is `true`", 'quote it: "true"'),
        ],
    ),
    "braces without quotes": (
        "evaluate: {guards: [{name: g, source: {input}, format: chat}]}",
        [("8:39", "a section of keys and values", 'quote it: "{input}"')],
    ),
    "number in quotes": ('train: {rank: "16"}', [("8:15", 'a whole number above 0, but is the text "16"', "write `rank: 16`")]),
    "number with separators": ("train: {max_steps: 10_000}", [("8:20", "must be a whole number", "write `max_steps: 10000`")]),
    "fraction for a whole number": ("train: {rank: 16.0}", [("8:15", "the number 16.0", "write `rank: 16`")]),
    "truth in words": ("train: {dora: yes}", [("8:15", "must be true or false", "write `dora: true`")]),
    "truth for a number": (
        "train: {epochs: true}",
        [("8:17", "must be a number above 0, but is `true`", "write for example `epochs: 1.0`")],
    ),
    "choice misspelt": ("train: {method: qlroa}", [("8:17", "one of `lora`, `qlora` or `full`", "did you mean `qlora`?")]),
    "choice unheard of": ("train: {method: zzz}", [("8:17", "one of", "write for example `method: lora`")]),
    "choice in quotes": ('train: {}\nquantize: [{method: gptq, bits: "8"}]', [("9:33", "one of `2`, `3`, `4` or `8`", "write `bits: 8`")]),
    "out of range": (
        "train: {dropout: 1, warmup: -0.5}",
        [("8:18", "at least 0 and below 1", "`dropout: 0.0`"), ("8:29", "at most 1", "")],
    ),
    "seed beyond numpy": ("train: {seed: 4294967296}", [("8:15", "below 4294967296", "seed: 0")]),
    "infinite": ("train: {learning_rate: .inf, epochs: 1e999}", [("8:24", "a number above 0", ""), ("8:38", "the number 1e999", "")]),
    "word or list": ("train: {target_modules: 3}", [("8:25", "must be `all-linear` or a list of texts, but is the number 3", "")]),
    "element of word or list": ("train: {target_modules: [q, 3]}", [("8:29", "`train.target_modules.1` must be a text", 'quote it: "3"')]),
    "word misspelt": ("train: {target_modules: all-liner}", [("8:25", "`all-linear` or a list", "did you mean `all-linear`?")]),
    "one text for a list": (
        'evaluate: {guards: [{name: g, source: s, format: chat, columns: {metadata: a}}]}',
        [("8:76", "a list of texts", "`metadata: [a]`")],
    ),
    "too few": (
        "evaluate: {guards: [{name: g, source: s, format: chat, task: {metric: label, labels: [a]}}]}",
        [("8:86", "a list of at least 2 texts, but is a list of 1 element", '`labels: ["yes", "no"]`')],
    ),
    "section wanted": ("launch: 3", [("8:9", "`launch` must be a section of keys and values, but is the number 3", "`launch: {}`")]),
    "list wanted": ("quantize: {}\ntrain: {}", [("8:11", "`quantize` must be a list of sections", "")]),
    "section without value": ("train:", [("8:1", "`train` has no value", "write `train: {}` to take every default, or `train: null`")]),
    "key without value": ("train:\n  rank:\n", [("9:3", "`train.rank` has no value", "for example `rank: 16`, or remove it")]),
    "null where none may be": (
        "hub: {token_env: null}",
        [("8:18", "`hub.token_env` must be the name of an env", "token_env: HF_TOKEN")],
    ),
    "no kind of quantizer": (
        "train: {}\nquantize: [{bits: 4}]",
        [("9:12", "`quantize.0.method` is missing", "for example `method: gptq`")],
    ),
    "wrong kind of quantizer": (
        "train: {}\nquantize: [{method: gptqq}]",
        [("9:21", "one of `gptq`, `bitsandbytes` or `compressed_tensors`", "did you mean `gptq`?")],
    ),
    "quantizer that is none": ("train: {}\nquantize: [4]", [("9:12", "`quantize.0` must be a section", "{method: gptq}")]),
    "missing in an element": (
        "evaluate: {guards: [{name: g, source: s}]}",
        [("8:21", "`evaluate.guards.0.format` is missing", "add it to `evaluate.guards.0`, for example `format: chat`")],
    ),
    "misspelt and therefore missing": ("evaluate: {guards: [{name: g, source: s, fromat: chat}]}", [("8:42", "`fromat`", "`format`")]),
    "not the name of a variable": ("hub: {token_env: my secret}", [("8:18", "but is another text", "token_env: HF_TOKEN")]),
    "group size zero": ("train: {}\nquantize: [{method: gptq, group_size: 0}]", [("9:27", "`group_size` is 0", "-1")]),
    "two variants of one name": (
        "quantize: [{method: gptq}, {method: gptq}]",
        [("8:1", "two candidates would be called `gptq-4bit-g64`", "a `name` of its own")],
    ),
    "an adapter to keep, and none trained": (
        "quantize: [{method: bitsandbytes, keep_adapter: true}]",
        [("8:1", "`keep_adapter` needs an adapter", "train: {method: qlora}")],
    ),
    "four-bit keys of eight bits": (
        "quantize: [{method: bitsandbytes, bits: 8, double: true}]",
        [("8:44", "`double` belongs to 4 bits", "remove it")],
    ),
    "a group of no columns": ("quantize: [{method: gptq, group_size: 0}]", [("8:27", "`group_size` is 0", "-1")]),
    "groups of eight bits": (
        "quantize: [{method: compressed_tensors, scheme: W8A8, group_size: 32}]",
        [("8:55", "`group_size` belongs to W4A16", "remove it")],
    ),
    "a share that takes every row": (
        "quantize: [{method: gptq, calibration: {general: a.txt, general_share: 1}}]",
        [("8:57", "`general_share` 1 of 256 rows", "between 0 and 1")],
    ),
    "adapter keys of a full fine-tune": (
        "train: {method: full, rank: 8, dora: true, layers: 2}",
        [("8:23", "`rank` configures an adapter", ""), ("8:32", "`dora`", ""), ("8:44", "`layers`", "method `lora`")],
    ),
    "warmup that nothing reads": (
        "train: {scheduler: constant, warmup: 0.1}",
        [("8:30", "scheduler `constant` has no warmup", "constant_with_warmup")],
    ),
    "twins": (
        "evaluate: {guards: [{name: g, source: s, format: chat}, {name: g, source: t, format: chat}]}",
        [("8:12", "two guards are named `g`", "a name of its own")],
    ),
    "twice": ("hub: {}\nhub: {}", [("9:1", "`hub` is given twice; the first is at recipe.yaml:8:1", "keep one")]),
    "python tag": ("hub: !!python/object:os.system {}", [("8:6", "YAML tags", "remove the tag")]),
    "harmless tag": ("train: {modules_to_save: [!!str 1]}", [("8:27", "YAML tags", "quote it")]),
    "alias of nothing": ("train: *nothing", [("8:8", "nothing above is named `&nothing`", "")]),
    "alias of itself": ("train: &t {modules_to_save: [*t]}", [("8:30", "stands inside the very value that it names", "")]),
    "merge of a number": ("train: {<<: 3}", [("8:9", "merges sections only", "")]),
    "misspelt kind of quantizer": (
        "train: {}\nquantize: [{methd: gptq, x: 1}]",
        [("9:13", "unknown key `methd` in `quantize.0`", "did you mean `method`?"), ("9:26", "unknown key `x`", "")],
    ),
    "no character": (r'hub: {endpoint: "\ud800"}', [("8:17", "a text that is not empty", "")]),
    "beyond Unicode": (r'hub: {endpoint: "\UFFFFFFFF"}', [("8:18", "beyond Unicode", "")]),
    "key that is a list": ("[a, b]: 3", [("8:1", "a key must be a plain word", "")]),
    "second document": ("---\nname: b", [("8:1", "a second document begins here", "make two files")]),
    "tab": ("train:\n\trank: 4", [("9:1", "a tab cannot stand here", "indent with spaces")]),
    "colon in a text": ("hub: a: b", [("8:7", "a `:` where no key can be", "quote a text")]),
    "open list": ("quantize: [a\n", [("8:11", "a list that began with `[` is not closed", "`]`")]),
    "open section": ("hub: {a: b\n", [("8:6", "a section that began with `{` is not closed", "`}`")]),
    "open quote": ("hub: 'a\n", [("8:6", "a quote is opened and never closed", "close the quote")]),
    "indentation": ("train:\n  rank: 3\n epochs: 3", [("10:2", "this does not belong to what comes before it", "alike")]),
    "at sign": ("hub: @a", [("8:6", "a text cannot begin with `@`", "quotes")]),
    "bad escape": (r'hub: "\q"', [("8:8", r"an unknown escape", r"`\\`")]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path: Path, name: str) -> None:
    addition, expected = REFUSED[name]
    found = problems(write(tmp_path, SMALL + addition))
    assert [where for where, _, _ in found] == [f"recipe.yaml:{where}" for where, _, _ in expected], found
    for (_, what, fix), (_, part_of_what, part_of_fix) in zip(found, expected, strict=True):
        assert part_of_what in what.replace(f"{tmp_path}/", "")
        assert part_of_fix in fix


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "name: A B\nmodel: {}\ndata:\n  source: 3\n  format: cat\n  split: {train: 0.5}\ntask: {metric: regex}\nhub: 1\nhub: 2\nx: 3\n"
    found = problems(write(tmp_path, text), "train.rnak=4", "nonsense")
    assert [where for where, _, _ in found] == [
        "recipe.yaml:1:7", "recipe.yaml:2:1", "recipe.yaml:4:11", "recipe.yaml:5:11", "recipe.yaml:6:3", "recipe.yaml:7:8",
        "recipe.yaml:8:6", "recipe.yaml:9:1", "recipe.yaml:10:1", "--set train.rnak=4", "--set nonsense",
    ]  # fmt: skip
    error = try_load(tmp_path / "recipe.yaml")
    assert isinstance(error, RecipeError) and error.exit_code == 2
    assert f"{tmp_path}/recipe.yaml:2:1: `model.source` is missing\n  fix: add it to `model`, for example `source: " in str(error)


@pytest.mark.parametrize("key", ["name", "model", "data", "task"])
def test_the_line_offered_for_a_missing_key_is_right(tmp_path: Path, key: str) -> None:
    [(where, what, fix)] = problems(write(tmp_path, {name: value for name, value in FULL.items() if name != key}))
    assert (where, what) == ("recipe.yaml:1:1", f"`{key}` is missing")
    line = fix.split("`")[1]
    text = "\n".join(
        f"{name}: {value}" for name, value in (("name", "x"), ("model", "{source: m}"), ("task", "{metric: chrf}")) if name != key
    )
    data = "" if key == "data" else "\ndata: {source: d, format: chat}"
    assert load(write(tmp_path, f"{text}{data}\n{line}\n"))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "quickstart.yaml")
    assert problems(tmp_path / "quikstart.yaml")[0][1:] == ("no such file", f"did you mean `{tmp_path}/quickstart.yaml`?")
    assert problems(tmp_path / "nowhere" / "a.yaml")[0][1] == "no such file"
    assert problems(tmp_path / "quickstart.yaml" / "a.yaml")[0][1] == "no such file"
    assert problems(tmp_path / "nul\0.yaml")[0][1] == "no such file"
    assert problems(tmp_path)[0][1:] == ("this is a folder, not a recipe", f"name a file in it, such as {tmp_path}/quickstart.yaml")
    for empty in ("", "# only a comment\n", "---\n", "---\n...\n"):
        assert problems(write(tmp_path, empty))[0][:2] == ("recipe.yaml:1:1", "the recipe is empty")
    assert problems(write(tmp_path, "- a\n"))[0][1] == "a recipe is a section of keys and values, but this is a list of 1 element"
    assert problems(write(tmp_path, "  just words"))[0][:2] == (
        "recipe.yaml:1:3",
        'a recipe is a section of keys and values, but this is the text "just words"',
    )
    assert problems(write(tmp_path, b"name: x\nmodel: \xff\xfe"))[0][:2] == ("recipe.yaml:2:8", "not UTF-8 text")
    assert problems(write(tmp_path, SMALL.encode("utf-16")))[0][1] == "not UTF-8 text"
    assert problems(write(tmp_path, "name: x\nmodel: a\0b"))[0][0] == "recipe.yaml:2:9"
    assert "over 256 KiB" in problems(write(tmp_path, "# " + "x" * 300_000))[0][1]
    assert problems(write(tmp_path, "%YAML 1.1\n---\n" + SMALL))[0][1] == "recipes are read as YAML 1.2"


TEN = ", ".join(["{}"] * 10)
LAUGHS = f"a: &a [{TEN}]\n" + "".join(f"{b}: &{b} [{TEN.format(*[f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LAUGHS, "values"),
        ("a: " + "[" * 20_000, "levels"),
        ("a: " + "{b: " * 20_000, "levels"),
    ],
    ids=["laughs", "lists", "sections"],
)  # fmt: skip
def test_bombs_are_refused(tmp_path: Path, text: str, what: str) -> None:
    found = problems(write(tmp_path, text))
    assert what in found[-1][1]


def test_a_number_too_long_is_no_number(tmp_path: Path) -> None:
    [(_, what, _)] = problems(write(tmp_path, f"{SMALL}train: {{rank: {'9' * 5000}}}"))
    assert "must be a whole number above 0, but is the text" in what and len(what) < 200
