"""Solvers and guidance over any callable (x_t, t, condition)."""
