"""Metrics: pure functions of tensors and features, for evaluation and for training."""
