"""Target encoders."""
