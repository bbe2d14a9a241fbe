"""Which versions there are, and which one answers to a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.simulator import chance
from workbench.simulator.settings import Change, Price, Simulator


@dataclass(frozen=True)
class Version:
    """A pinned version of a model.

    Attributes:
        name: as responses carry it.
        accuracy: expected share of right answers.
        price: of its answers.
        fingerprint: `system_fingerprint` of its responses.
    """

    name: str
    accuracy: float
    price: Price
    fingerprint: str


class Models:
    """The base model, its other names, the version after the change, and the fine-tuned ones.

    Args:
        clock: seconds since the start.
        tuned: names of the models whose fine-tuning has succeeded so far.
    """

    def __init__(self, settings: Simulator, clock: Callable[[], float], tuned: Callable[[], list[str]]) -> None:
        self._settings, self._clock, self._tuned = settings, clock, tuned

    def current(self, requests: int) -> Version:
        """The base version that answers request number `requests` now."""
        settings, change = self._settings, self._settings.change
        if change is None or not self._changed(change, requests):
            return self._version(settings.model, settings.accuracy, settings.price)
        return self._version(change.model, settings.accuracy if change.accuracy is None else change.accuracy, settings.price)

    def names(self, requests: int) -> list[str]:
        """Every name that can be asked for now."""
        return list(dict.fromkeys([self._settings.model, *self._settings.aliases, self.current(requests).name, *self._tuned()]))

    def answering(self, name: str, requests: int) -> Version | None:
        """What answers to a name; None: there is no such model."""
        if name in self._tuned():
            tuning = self._settings.fine_tuning
            return self._version(name, tuning.accuracy, tuning.price)
        return self.current(requests) if name in self.names(requests) else None

    def _changed(self, change: Change, requests: int) -> bool:
        if change.after_requests is not None:
            return requests > change.after_requests
        return self._clock() >= (change.after_s or 0.0)

    def _version(self, name: str, accuracy: float, price: Price) -> Version:
        return Version(name, accuracy, price, f"fp_{chance.identifier(self._settings.seed, 'fingerprint', name, digits=10)}")
