"""The networks, in the paper's terms: STEM, GLAM, STREAM, the discriminators and DAMSM."""
