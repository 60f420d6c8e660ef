"""Bottlenecks: what stands between encoder and decoder, under `{"bottleneck": {"type": ...}}`."""

from stable_audio_tools.models.bottleneck.base import Bottleneck, Compressed, DiscreteBottleneck
from stable_audio_tools.models.bottleneck.dac_rvq import DACRVQBottleneck, DACRVQVAEBottleneck
from stable_audio_tools.models.bottleneck.fsq import DitheredFSQBottleneck, FSQBottleneck
from stable_audio_tools.models.bottleneck.rvq import RVQBottleneck, RVQVAEBottleneck
from stable_audio_tools.models.bottleneck.simple import (
    L2Bottleneck,
    RunningSoftNormBottleneck,
    SoftNormBottleneck,
    TanhBottleneck,
    WassersteinBottleneck,
    compute_mean_kernel,
    compute_mmd,
)
from stable_audio_tools.models.bottleneck.vae import KLBottleneck, VAEBottleneck, vae_sample

__all__ = [
    "Bottleneck",
    "Compressed",
    "DACRVQBottleneck",
    "DACRVQVAEBottleneck",
    "DiscreteBottleneck",
    "DitheredFSQBottleneck",
    "FSQBottleneck",
    "KLBottleneck",
    "L2Bottleneck",
    "RVQBottleneck",
    "RVQVAEBottleneck",
    "RunningSoftNormBottleneck",
    "SoftNormBottleneck",
    "TanhBottleneck",
    "VAEBottleneck",
    "WassersteinBottleneck",
    "compute_mean_kernel",
    "compute_mmd",
    "vae_sample",
]
