"""Duplicate recordings in a dataset: histograms of codes select candidates, aligned frames confirm them."""
