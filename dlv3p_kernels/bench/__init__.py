"""Timing of the ops against stock PyTorch: the front end of `dlv3p bench`."""

from .cli import main

__all__ = ["main"]
