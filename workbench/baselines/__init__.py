"""Closed models: asked within a budget, recorded for good, replayed for nothing; and files of answers that others recorded."""
