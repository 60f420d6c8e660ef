"""Encoding datasets beforehand: audio to latents, text to conditions, and the identity of the model that did it."""
