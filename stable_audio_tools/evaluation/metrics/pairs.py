"""Agreement of pairs: a sound and its text, a sound and its reference."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError


@dataclass(frozen=True)
class Alignment:
    """Cosines of pairs, their mean and their (population) standard deviation."""

    cosines: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.cosines))

    @property
    def std(self) -> float:
        return float(np.std(self.cosines))


def alignment(texts: NDArray[Any], sounds: NDArray[Any]) -> Alignment:
    """Of rows (n, d) and (n, d)."""
    if len(texts) != len(sounds) or not len(texts):
        raise UserError(f"agreement is of pairs; got {len(texts)} texts and {len(sounds)} sounds")
    t, s = np.asarray(texts, np.float64), np.asarray(sounds, np.float64)
    lengths = np.linalg.norm(t, axis=1) * np.linalg.norm(s, axis=1)
    cosines = (t * s).sum(1) / np.maximum(lengths, 1e-12)
    return Alignment(tuple(float(value) for value in cosines))


def kl_divergence(reference_logits: NDArray[Any], made_logits: NDArray[Any]) -> float:
    """Mean over pairs (n, classes) of KL(reference || made) between softmax distributions, in nats."""
    if reference_logits.shape != made_logits.shape:
        raise UserError(f"pairs of unlike shape: {reference_logits.shape} and {made_logits.shape}")
    p, q = _log_softmax(reference_logits), _log_softmax(made_logits)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
