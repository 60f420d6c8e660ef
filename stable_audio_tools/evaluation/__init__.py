"""Scores of generated audio: embedders, distances between sets, agreement with prompts, and files that say how."""
