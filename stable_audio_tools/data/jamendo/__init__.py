"""MTG-Jamendo: its audio from a mirror, and its tables as metadata."""
