"""Published import paths of friendly-stable-audio-tools."""
