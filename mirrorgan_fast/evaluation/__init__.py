"""Measures of what a model generates, one file a metric, and the report of them all."""
