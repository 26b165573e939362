"""Sampling: from captions to images on disk."""
