"""SQuAD-style normalisation of answers (Rajpurkar et al. 2016, arXiv:1606.05250, official evaluation script)."""

from __future__ import annotations

import re
import string
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces.

    Unlike the SQuAD script, punctuation of every script is removed, not only ASCII's. Text of which nothing would be
    left ("a", "?") is only stripped, so that two different ones stay different.
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", bare).split()) or text.strip()
