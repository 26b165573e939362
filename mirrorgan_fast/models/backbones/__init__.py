"""The CNNs that DAMSM and STREAM use."""
