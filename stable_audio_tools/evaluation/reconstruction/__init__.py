"""How well an autoencoder reconstructs a folder of audio."""
