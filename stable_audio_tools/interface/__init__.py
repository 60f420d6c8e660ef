"""What a user sees: the app, and pictures of audio and latents."""
