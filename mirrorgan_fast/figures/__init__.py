"""Figures and animations of what a model generates."""
