"""Random seeds that every platform accepts."""

import secrets

MAX_SEED = 2**31 - 1


def draw_seed() -> int:
    """Draw a random seed in [0, 2^31 - 1) without changing any random state."""
    return secrets.randbelow(MAX_SEED)


def resolve_seed(seed: int) -> int:
    """Return `seed`, or a random one for -1; refuse other values outside [0, 2^31 - 1]."""
    if seed == -1:
        return draw_seed()
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be -1 (random) or between 0 and {MAX_SEED}, got {seed}")
    return seed


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) of this process."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
