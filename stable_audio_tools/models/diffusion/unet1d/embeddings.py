"""Embeddings of time, and the learned sequence that stands for 'no condition'."""

import math

import torch
from torch import Tensor, nn

from stable_audio_tools.models.fourier import ExpoFourierFeatures
from stable_audio_tools.models.precision import FullPrecision, weight_dtype


class LearnedFourier(FullPrecision, nn.Module):
    """A scalar and the sines and cosines of it at learned frequencies: (b,) -> (b, dim + 1), in float32 or more."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(dim // 2))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weights.dtype, torch.float32)  # half precision has too few levels of noise
        x = x[:, None].to(dtype)
        phases = x * self.weights.to(dtype) * 2 * math.pi
        return torch.cat([x, phases.sin(), phases.cos()], dim=-1)


class FourierEmbedding(nn.Sequential):
    """A scalar through Fourier features and a projection: (b,) -> (b, out_features).

    Frequencies are learned, or fixed and exponentially spaced.
    """

    def __init__(self, dim: int, out_features: int, exponential: bool = False) -> None:
        if exponential:
            super().__init__(ExpoFourierFeatures(dim), nn.Linear(dim, out_features))
        else:
            super().__init__(LearnedFourier(dim), nn.Linear(dim + 1, out_features))

    def forward(self, x: Tensor) -> Tensor:
        features, project = self
        projected: Tensor = project(features(x).to(weight_dtype(project)))
        return projected


def time_embedding(dim: int, out_features: int) -> nn.Sequential:
    """(b,) -> (b, out_features)"""
    return nn.Sequential(FourierEmbedding(dim, out_features), nn.GELU())


class FixedEmbedding(nn.Module):
    """One learned vector per position, the same whatever the condition says."""

    def __init__(self, max_length: int, features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_length, features)

    def forward(self, like: Tensor) -> Tensor:
        """like (b, s, f) -> (b, s, f)"""
        batch, length, _ = like.shape
        longest = self.embedding.num_embeddings
        if length > longest:
            raise ValueError(
                f"cross-attention conditioning of {length} tokens: the model knows {longest}; "
                f"set context_embedding_max_length to at least {length}, or shorten the conditions"
            )
        return self.embedding.weight[:length].expand(batch, -1, -1).to(like.dtype)
