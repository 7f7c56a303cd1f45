"""One module per family of kinds; each has RUNNERS, a dict from kind to `Runner`."""
