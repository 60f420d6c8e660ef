"""Distances between sets of vectors, and agreement of pairs."""
