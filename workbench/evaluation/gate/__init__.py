"""The gate: PASS, FAIL or INCONCLUSIVE for a candidate against a baseline, as a function of outcomes tables."""

from workbench.evaluation.gate.judge import gate, gate_files
from workbench.evaluation.gate.outlook import Outlook, outlook
from workbench.evaluation.gate.verdict import Comparison, Verdict

__all__ = ["Comparison", "Outlook", "Verdict", "gate", "gate_files", "outlook"]
