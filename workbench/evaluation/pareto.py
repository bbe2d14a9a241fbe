"""Which candidates nobody should choose: another is at least as good in every respect, and better in one (Pareto dominance)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: (score, size on disk, peak memory, time per written token): the first is better when high, the others when low.
Point = tuple[float, float, float, float]


def dominated(points: Mapping[str, Point]) -> dict[str, list[str]]:
    """For each candidate the names of those that dominate it; an empty list is a place on the Pareto front."""
    return {name: [other for other in points if other != name and _dominates(points[other], point)] for name, point in points.items()}


def _dominates(one: Point, other: Point) -> bool:
    first, second = _to_maximise(one), _to_maximise(other)
    return all(a >= b for a, b in zip(first, second, strict=True)) and first != second


def _to_maximise(point: Point) -> Sequence[float]:
    return (point[0], -point[1], -point[2], -point[3])
