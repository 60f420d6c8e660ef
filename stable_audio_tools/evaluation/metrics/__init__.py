"""Distances between sets of vectors, agreement of pairs, and intervals over files."""
