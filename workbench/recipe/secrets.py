"""Keep secrets out of recipes, and out of everything that is said about them."""

from __future__ import annotations

import re

#: Keys whose form gives them away: OpenAI and Anthropic, Hugging Face, AWS, GitHub, GitLab, Slack, Google, PyPI, private keys,
#: and a password inside a URL.
_SECRET = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        sk-[A-Za-z0-9_-]{16,}
      | hf_[A-Za-z0-9]{16,}
      | (?:AKIA|ASIA)[A-Z0-9]{12,}
      | gh[opsur]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,}
      | glpat-[A-Za-z0-9_-]{16,}
      | xox[abprs]-[A-Za-z0-9-]{10,}
      | AIza[A-Za-z0-9_-]{30,}
      | pypi-[A-Za-z0-9_-]{40,}
    )
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    | (?<=://)[^/\s:@"']+:[^/\s@"']+(?=@)""",
    re.VERBOSE,
)

WHAT = "this looks like a secret, and a recipe holds none"
FIX = "put the name of an environment variable there (such as HF_TOKEN), remove the secret from the file, and revoke it if it was shared"


def find(text: str) -> list[int]:
    """Where in `text` something looks like a secret: offsets in characters."""
    return [match.start() for match in _SECRET.finditer(text)]


def redact(text: str) -> str:
    """`text` with everything that looks like a secret replaced by `***`."""
    return _SECRET.sub("***", text)
