"""Painted birds: a captioned bird data set that ships as code and needs no download.

A bird has a value for each of its attributes (`bird.py`). It is drawn as a small illustration with
a mask of every part (`drawing.py`), and described in the phrasing that people used for the CUB
birds (`words.py`). A picture depends only on (seed, split, index), and it is known exactly what a
generated picture should show (`data_set.py`). The birds of the test split have pairs of crown and
belly color that never occur in the training split. This shows whether a model composes words or
only remembers pictures.
"""
