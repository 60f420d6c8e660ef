"""Agreement of pairs: a sound and its text, a sound and its reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.settings import KLDirection

Vectors = NDArray[np.floating]  # (n, d)

_PROBABILITY_FLOOR = 1e-6  # added to the second distribution, as in stable-audio-metrics and audioldm_eval


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


def alignment(texts: Vectors, sounds: Sequence[Vectors]) -> Alignment:
    """Compare texts (n, d) with sounds, each of windows (w, d): a sound's cosine is the mean over its windows.

    The cosine of a mean of windows would grow with their number, because averaging removes what the windows do not
    share.
    """
    if len(texts) != len(sounds) or not len(texts):
        raise UserError(f"agreement needs pairs, got {len(texts)} texts and {len(sounds)} sounds")
    cosines = []
    for text, windows in zip(np.asarray(texts, np.float64), sounds):
        rows = np.atleast_2d(np.asarray(windows, np.float64))
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(text)
        cosines.append(float((rows @ text / np.maximum(lengths, 1e-12)).mean()))
    return Alignment(tuple(cosines))


def kl_divergences(
    references: Vectors, generated: Vectors, direction: KLDirection = "generated-from-reference"
) -> NDArray[np.float64]:
    """Return the KL divergence of each pair of logits (n, classes), between softmax distributions, in nats.

    "generated-from-reference" is KL(generated || reference) of stable-audio-metrics, the other direction that of
    AudioGen and audioldm_eval. Both add 1e-6 to the second distribution.
    """
    if references.shape != generated.shape:
        raise UserError(f"pairs of unlike shape: {references.shape} and {generated.shape}")
    first, second = (generated, references) if direction == "generated-from-reference" else (references, generated)
    log_p, log_q = _log_softmax(first), np.log(np.exp(_log_softmax(second)) + _PROBABILITY_FLOOR)
    divergences: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return divergences


def _log_softmax(logits: Vectors) -> NDArray[np.float64]:
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
