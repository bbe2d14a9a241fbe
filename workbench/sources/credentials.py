"""Nothing that is printed may carry the credentials people put into index addresses."""

from __future__ import annotations

import re


def redacted(text: str) -> str:
    """`text` with the user part and the query values of every address in it replaced by `***`."""
    text = re.sub(r"(?<=://)[^/\s]+@", "***@", text)
    return re.sub(r"(?<=[?&])([^=&\s]+)=[^&\s]+", r"\1=***", text)
