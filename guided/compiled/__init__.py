"""Loops that numba compiles. Imported only where they run."""
