"""Callbacks around the training step: checkpoints, guards, demos."""
