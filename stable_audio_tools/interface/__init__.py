"""The app, and pictures of audio and latents."""
