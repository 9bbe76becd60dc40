"""Guided representation learning: an expert's 2-D points steer the embedding of a network (Gräbel et al.)."""
