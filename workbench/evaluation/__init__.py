"""Candidates x examples -> outcomes: generation, metrics, the outcomes table, importers."""
