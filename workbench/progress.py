"""Progress of long work: a bar with the time left on a terminal, one line now and then in a log. Always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

#: Seconds between two lines of the same work in a log.
LOG_INTERVAL = 15.0

console = Console(stderr=True, highlight=False)


class Advance(Protocol):
    """Says how far the work is, and optionally what is worth a word, such as "loss 0.31"."""

    def __call__(self, done: float, note: str = "", /) -> None: ...


def say(text: str) -> None:
    """One line about what happens now."""
    console.print(text, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`75` -> `1:15`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextmanager
def track(what: str, total: float, *, begin: int = 0) -> Iterator[Advance]:
    """Follow one piece of work; yields `advance(done, note)`, where `done` counts up to `total`.

    Args:
        begin: what was done before, by an earlier attempt; it says nothing about the pace of this one.
    """
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bar:
            task = bar.add_task(what, total=total, completed=begin, note="")

            def show(done: float, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield show
        return
    started = spoken = time.monotonic()

    def advance(done: float, note: str = "") -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken < LOG_INTERVAL:
            return
        spoken = now
        left = (now - started) / (done - begin) * (total - done) if done > begin else float("nan")
        eta = f", {duration(left)} left" if done > begin else ""
        say(f"  {what}: {done:g}/{total:g}{eta}{', ' + note if note else ''}")

    yield advance
