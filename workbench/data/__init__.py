"""Data set readers and validation, prompt rendering, splits and contamination."""
