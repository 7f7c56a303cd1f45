"""Tars of pictures and captions, read at random places."""

from .pairs import WebDataset

__all__ = ["WebDataset"]
