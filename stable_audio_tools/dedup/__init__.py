"""Copies in a data set: code histograms find candidates, aligned frames confirm, clusters say what to leave out."""
