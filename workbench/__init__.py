"""Workbench: from one declarative recipe to a tracked, evaluated, servable fine-tune."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("workbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
