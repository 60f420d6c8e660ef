"""Data attribution: which training items made an output, by projected gradients (TRAK, D-TRAK)."""
