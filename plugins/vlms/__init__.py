"""Adapters of vision-language models."""
