"""Data attribution: which training items contributed to an output, by projected gradients (TRAK, D-TRAK)."""
