"""Copies of a model with fewer bits a weight: one file a method, each a `Quantizer`."""
