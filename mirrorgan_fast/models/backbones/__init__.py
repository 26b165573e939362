"""The image networks that DAMSM and STREAM see with."""
