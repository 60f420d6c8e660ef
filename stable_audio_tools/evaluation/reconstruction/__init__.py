"""Reconstruction error of an autoencoder on a folder of audio."""
