"""Figures: animations, and what else is drawn of a model."""
