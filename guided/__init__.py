"""Guided representation learning: an expert's 2-D points steer the embedding of a network (Gräbel et al.)."""

__version__ = "0.1.0"  # of all three packages; pyproject.toml reads it here
