"""Training: one loop for one process or many, that survives being killed at any moment."""
