"""Tracking: the only room that talks to MLflow.

Journal first. Whatever a run reports is appended to a file beside the run (`Journal`) and only then replayed into
MLflow (`sync`). A tracking server that is slow, away or dies in the middle therefore costs a warning, never a run or
a number: the next `sync` carries on where the last one stopped. Replaying twice changes nothing.
"""

from workbench.tracking.environment import environment
from workbench.tracking.journal import Journal, Status
from workbench.tracking.mlflow_sync import SyncResult, sync, sync_all
from workbench.tracking.target import tracking_uri, ui_command

__all__ = ["Journal", "Status", "SyncResult", "environment", "sync", "sync_all", "tracking_uri", "ui_command"]
