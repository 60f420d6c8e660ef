"""The networks of stable-audio-3, by its module paths."""
