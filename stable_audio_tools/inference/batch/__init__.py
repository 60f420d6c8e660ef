"""From a file of prompts to a folder of audio."""
