"""A recipe's text as a tree in which every key and every value knows where it was written.

ruamel.yaml reads the syntax (its events carry positions); what a plain scalar means is decided here, by the core schema of
YAML 1.2 (section 10.3.2), so that `1e-3` is a number and `on`, `off`, `yes` and `no` are texts, whatever a library's default is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

MOST_VALUES = 10_000  # after aliases are followed: what a human writes, not a "billion laughs"
DEEPEST = 30  # levels; the schema has six

#: A key without any value (`train:`), which is not the same as `train: null`.
EMPTY: Any = type("Empty", (), {})()
#: A value about which a problem was already reported.
INVALID: Any = type("Invalid", (), {})()


@dataclass(frozen=True)
class Origin:
    """Where a value comes from.

    Attributes:
        kind: the schema's default, the recipe file or a `--set` on the command line.
        where: `recipe.yaml:3:7` or `--set train.rank=8` in full, as errors say it; `default` for a default.
        label: `recipe.yaml:3` or `--set train.rank`, as the resolved recipe says it; `default` for a default.
        line: line in the file, or number of the `--set`, from 1; 0 for a default.
        column: column in the file, from 1, in characters; 0 elsewhere.
    """

    kind: Literal["default", "file", "override"]
    where: str
    label: str
    line: int = 0
    column: int = 0


DEFAULT = Origin("default", "default", "default")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and how to put it right."""

    origin: Origin
    what: str
    fix: str


class Entry(NamedTuple):
    """One key of a mapping."""

    at: Origin  # of the key
    node: Node


@dataclass(frozen=True)
class Node:
    """One value.

    Attributes:
        value: a scalar, a tuple of nodes, a dict of entries, EMPTY or INVALID.
        origin: where it starts.
        source: the text as written, for scalars and flow collections; empty for block collections.
        quoted: a scalar in quotes or a block scalar, which is a text whatever it looks like.
        size: values in it, itself included, aliases followed.
    """

    value: Any
    origin: Origin
    source: str = ""
    quoted: bool = False
    size: int = 1

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, tuple):
            return [item.plain() for item in self.value]
        return self.value


class SyntaxFault(Exception):
    """The text cannot be read any further; carries the problems found so far, the fatal one last."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__()


def parse(text: str, locate: Callable[[int, int], Origin]) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document.

    Args:
        text: the document.
        locate: gives the origin for a line and a column, both from 1.

    Returns:
        The tree (None for a text without any value) and the problems that did not keep it from being read.

    Raises:
        SyntaxFault: the text is not one YAML document, or one that no human writes (too deep, too many values).
    """
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        at = locate(*position(text, unprintable.start()))
        what = f"a control character (U+{ord(unprintable[0]):04X}) that YAML does not allow"
        raise SyntaxFault([Problem(at, what, r'remove it, or write it as an escape in double quotes, such as "\a"')])
    reader = _Reader(text, locate)
    try:
        return reader.document(), reader.problems
    except MarkedYAMLError as error:
        raise SyntaxFault([*reader.problems, _syntax_problem(error, locate)]) from error
    except (ValueError, OverflowError) as error:  # ruamel hands any \U escape to chr()
        beyond = _BEYOND_UNICODE.search(text)
        at = locate(*position(text, beyond.start())) if beyond else locate(1, 1)
        fault = Problem(at, "an escape names a character beyond Unicode", r"write at most \U0010FFFF, or `\\` for a backslash")
        raise SyntaxFault([*reader.problems, fault]) from error


class _Reader:
    """Builds nodes from ruamel's events."""

    def __init__(self, text: str, locate: Callable[[int, int], Origin]) -> None:
        self.text, self.locate = text, locate
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node | None] = {}  # None while the anchored value is still being read
        self.events: Iterator[Event] = iter(YAML(typ="safe", pure=True).parse(text))

    def document(self) -> Node | None:
        root: Node | None = None
        seen = False
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if seen:
                    self._stop(
                        event, "a second document begins here; a recipe is one", "remove this `---` and what follows, or make two files"
                    )
                seen = True
                if event.version is not None and tuple(event.version) != (1, 2):
                    self._report(event, "recipes are read as YAML 1.2", "remove the %YAML line")
            elif isinstance(event, NodeEvent):
                root = self._node(event, 0)
        return None if root is None or root.value is EMPTY else root

    def _node(self, event: NodeEvent, depth: int) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth > DEEPEST:
            self._stop(event, f"more than {DEEPEST} levels deep", "a recipe needs no more than six levels: look for brackets too many")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if node.size > MOST_VALUES:
            self._stop(event, f"more than {MOST_VALUES} values, aliases followed", "write a shorter recipe; rows of data belong in a file")
        if getattr(event, "ctag", None) is not None:
            self._report(
                event, "YAML tags (`!...`) are not part of the recipe language", "remove the tag; to make a text of a number, quote it"
            )
            node = Node(INVALID, node.origin)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent) -> Node:
        node = self.anchors.get(event.anchor)
        if node is not None:
            return node
        if event.anchor in self.anchors:
            self._report(event, f"`*{event.anchor}` stands inside the very value that it names", "write the value out")
        else:
            self._report(
                event, f"nothing above is named `&{event.anchor}`", f"name a value with `&{event.anchor}` first, or quote the text"
            )
        return Node(INVALID, self._at(event))

    def _scalar(self, event: ScalarEvent) -> Node:
        quoted = event.style is not None
        value = event.value if quoted else resolve(event.value)
        return Node(value, self._at(event), source=event.value, quoted=quoted)

    def _sequence(self, event: SequenceStartEvent, depth: int) -> Node:
        items: list[Node] = []
        end = self._next()
        while not isinstance(end, SequenceEndEvent):
            items.append(self._node(end, depth + 1))
            end = self._next()
        return Node(tuple(items), self._at(event), source=self._source(event, end), size=1 + sum(item.size for item in items))

    def _mapping(self, event: NodeEvent, depth: int) -> Node:
        own: dict[str, Entry] = {}
        merged: list[Entry] = []
        end = self._next()
        while not isinstance(end, MappingEndEvent):
            key, at = self._key(end, depth), self._at(end)
            node = self._node(self._next(), depth + 1)
            if node.value is EMPTY:
                node = replace(node, origin=at)  # ruamel places it where the next token is
            if key in own:
                first = own[key].at
                self._report(end, f"`{shown(key)}` is given twice; the first is at {first.where}", "keep one of the two")
            elif key == "<<" and end.style is None:
                merged.append(Entry(at, node))
            elif key is not None:
                own[key] = Entry(at, node)
            end = self._next()
        entries = self._merge(own, merged)
        size = 1 + sum(entry.node.size for entry in entries.values())
        return Node(entries, self._at(event), source=self._source(event, end), size=size)

    def _key(self, event: Event, depth: int) -> str | None:
        """A key as written (`1`, `null` and `on` are texts here), or None after reporting one that is no scalar."""
        if isinstance(event, ScalarEvent) and event.ctag is None and event.value:
            if event.anchor is not None:
                self.anchors[event.anchor] = self._scalar(event)
            return str(event.value)
        self._report(event, "a key must be a plain word", "write `key: value`; quote a text that begins with `{`, `[`, `*`, `!` or `:`")
        if isinstance(event, NodeEvent):
            self._node(event, depth + 1)
        return None

    def _merge(self, own: dict[str, Entry], merged: list[Entry]) -> dict[str, Entry]:
        """Merge keys (`<<: *base`): a section's own keys win, then earlier ones."""
        entries = dict(own)
        for at, node in merged:
            for source in node.value if isinstance(node.value, tuple) else (node,):
                if isinstance(source.value, dict):
                    entries = source.value | entries
                elif source.value is not INVALID:
                    self.problems.append(Problem(at, "`<<` merges sections only", "give it an alias of a section, such as `<<: *base`"))
        return entries

    def _next(self) -> Any:
        return next(self.events)

    def _at(self, event: Event) -> Origin:
        return self.locate(event.start_mark.line + 1, event.start_mark.column + 1)

    def _source(self, start: NodeEvent, end: Event) -> str:
        """The text of a flow collection; an empty text for one in block style."""
        return self.text[start.start_mark.index : end.end_mark.index] if start.flow_style else ""  # type: ignore[attr-defined]

    def _report(self, event: Event, what: str, fix: str) -> None:
        self.problems.append(Problem(self._at(event), what, fix))

    def _stop(self, event: Event, what: str, fix: str) -> None:
        self._report(event, what, fix)
        raise SyntaxFault(self.problems)


_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # YAML 1.2, section 5.1
_BEYOND_UNICODE = re.compile(r"\\U(?!000|0010)[0-9a-fA-F]{8}")
_INT = re.compile(r"[-+]?[0-9]{1,100}")
_BASED = {"0x": (re.compile(r"0x[0-9a-fA-F]{1,16}"), 16), "0o": (re.compile(r"0o[0-7]{1,21}"), 8)}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": EMPTY, "~": None} | {
    form: value for word, value in (("null", None), ("true", True), ("false", False)) for form in (word, word.title(), word.upper())
}
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def resolve(text: str) -> Any:
    """What a scalar without quotes means: null, a bool, an int, a float, a text, or EMPTY. A number of over 100 digits is a text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if text[:2] in _BASED:
        pattern, base = _BASED[text[:2]]
        return int(text, base) if pattern.fullmatch(text) else text
    if _FLOAT.fullmatch(text) and len(text) <= 100:
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", "").casefold())
    return text


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of a character of the text, as ruamel counts lines."""
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text[:offset])
    return len(lines), len(lines[-1]) + 1


def shown(text: str, most: int = 60) -> str:
    """A user's text as part of one line: no control characters, not too long."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return line if len(line) <= most else line[: most - 3] + "..."


#: What ruamel says, and what a person needs to hear: (part of its message, what, fix). The first match wins.
_REASONS = (
    (r"character '\t' that cannot start", "a tab cannot stand here", "indent with spaces"),
    ("character '@' that cannot", "a text cannot begin with `@` unless it is quoted", "put quotes around it"),
    ("character '`' that cannot", "a text cannot begin with a backquote unless it is quoted", "put quotes around it"),
    ("character '%' that cannot", "a text cannot begin with `%` unless it is quoted", "put quotes around it"),
    (
        "mapping values are not allowed",
        "a `:` where no key can be",
        'quote a text that contains ": ", and indent the keys of one section alike',
    ),
    ("expected ',' or ']'", "a list that began with `[` is not closed", "put `]` at its end, or `,` between its elements"),
    ("expected ',' or '}'", "a section that began with `{` is not closed", "put `}` at its end, or `,` between its keys"),
    ("end of stream", "a quote is opened and never closed", "close the quote"),
    ("document separator", "a quote is opened and never closed", "close the quote"),
    (
        "expected <block end>, but found '-'",
        "a list element where a key is expected",
        "indent the elements of one list alike, under their key",
    ),
    (
        "expected <block end>",
        "this does not belong to what comes before it",
        "indent the keys of one section alike; quote a text that begins with `{`, `[` or a quote",
    ),
    ("sequence entries are not allowed", "a list element (`- ...`) cannot stand here", "begin a list on the line below its key"),
    ("could not find expected ':'", "a line without `key: value`", "write `key: value`; quote a text of several lines"),
    (
        "unknown escape character",
        r"an unknown escape (`\...`) in a text in double quotes",
        r"write `\\` for a backslash, or use single quotes",
    ),
    (
        "expected escape sequence",
        r"an incomplete escape (`\...`) in a text in double quotes",
        r"write `\\` for a backslash, or use single quotes",
    ),
    ("tag", "YAML tags (`!...`) are not part of the recipe language", "remove the tag, or quote a text that begins with `!`"),
    ("directive", "a line that begins with `%` is a YAML directive", "remove it, or quote the text"),
    ("while scanning an a", "`&` and `*` begin the name of an anchor", "put a name after it, or quote the text"),
    (
        "block scalar",
        "a text in block style (`|` or `>`) that does not hold together",
        "begin it on the next line, and indent its lines alike",
    ),
)


def _syntax_problem(error: MarkedYAMLError, locate: Callable[[int, int], Origin]) -> Problem:
    said = f"{error.context or ''} {error.problem or ''}"
    what, fix = next(
        ((what, fix) for part, what, fix in _REASONS if part in said),
        ("this is not YAML", "look at this line and the one above: brackets, quotes, `:` and indentation"),
    )
    # Where it was opened tells more than the end of the file does.
    mark = error.context_mark if "closed" in what or error.problem_mark is None else error.problem_mark
    return Problem(locate(mark.line + 1, mark.column + 1) if mark else locate(1, 1), what, fix)
