"""Seeded chance without state: the same key gives the same number, in whatever order requests arrive."""

from __future__ import annotations

import hashlib
import json
from statistics import NormalDist


def uniform(*key: str | int | float) -> float:
    """A number in (0, 1), uniform over keys: 53 bits of the key's BLAKE2b digest, never 0 or 1."""
    raw = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return ((int.from_bytes(raw) >> 11) + 0.5) / 2**53


def normal(*key: str | int | float) -> float:
    """A standard normal number."""
    return NormalDist().inv_cdf(uniform(*key))


def pick(count: int, *key: str | int | float) -> int:
    """An index below `count`."""
    return min(int(uniform(*key) * count), count - 1)


def identifier(*key: str | int | float, digits: int = 24) -> str:
    """Hexadecimal digits that stand for the key."""
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=32).hexdigest()[:digits]
