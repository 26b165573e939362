"""Training from nothing: the objectives, pretraining of STEM and STREAM, and the GAN itself."""
