"""Readers and the token cache."""
