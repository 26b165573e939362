"""Painted birds: a captioned bird data set that ships as code and needs no download.

A bird is a value for each of its attributes (`bird.py`). It is drawn as a small illustration with
the mask of every part (`drawing.py`), and described in the phrasing people used for the CUB birds
(`words.py`). Pictures are functions of a seed, so a data set is three numbers (seed, split, index),
and what a generated picture should show is known exactly (`data_set.py`). The test split consists
of the pairs of crown and belly color that the training split never shows, which tells composing
words from remembering pictures.
"""
