"""Evaluation of a model's images and descriptions, and the report of all metrics."""
