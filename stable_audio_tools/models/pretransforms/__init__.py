"""Pretransforms: fixed steps between audio and the space of a model, under `{"pretransform": {"type": ...}}`."""

from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.chain import ChainPretransform
from stable_audio_tools.models.pretransforms.patched import PatchedPretransform
from stable_audio_tools.models.pretransforms.pqmf import PQMFPretransform
from stable_audio_tools.models.pretransforms.pretrained import (
    AudiocraftCompressionPretransform,
    PretrainedDACPretransform,
)
from stable_audio_tools.models.pretransforms.spectral import ComplexSTFTPretransform, HILPQMFPretransform
from stable_audio_tools.models.pretransforms.wavelet import WaveletPretransform

__all__ = [
    "AudiocraftCompressionPretransform",
    "AutoencoderPretransform",
    "ChainPretransform",
    "ComplexSTFTPretransform",
    "HILPQMFPretransform",
    "PQMFPretransform",
    "PatchedPretransform",
    "PretrainedDACPretransform",
    "Pretransform",
    "WaveletPretransform",
]
