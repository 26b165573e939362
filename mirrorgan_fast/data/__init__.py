"""Captioned images: what they are, the data sets read here, and their words."""
