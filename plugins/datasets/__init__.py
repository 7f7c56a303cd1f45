"""Sources of training and evaluation pairs."""
