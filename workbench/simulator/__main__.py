"""The simulator as a child process: settings (JSON) on standard input, then one line on standard output: its URL, or why there is none."""

from __future__ import annotations

import json
import sys

from workbench.child import leave_with_parent
from workbench.errors import WorkbenchError
from workbench.simulator.server import serve
from workbench.simulator.settings import Simulator


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    leave_with_parent()
    try:
        serve(Simulator.model_validate_json(sys.stdin.read()), "127.0.0.1", 0, lambda url: _say(url=url))
    except WorkbenchError as error:
        _say(what=error.what, where=error.where, fix=error.fix, exit_code=error.exit_code)
        sys.exit(error.exit_code)
