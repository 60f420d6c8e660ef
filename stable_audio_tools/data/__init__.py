"""Data: audio files, captions, datasets and loaders."""
