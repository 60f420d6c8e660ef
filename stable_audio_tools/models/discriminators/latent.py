"""Critics of latents: do they belong to this audio, and can masked stretches of them be predicted?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.models.transformer import TransformerBlock

_MOST_PAIRS = 1024  # of a loss, over all shifts
_LATENT_NOISE = 1e-2


def _block(width: int, dyt: bool) -> TransformerBlock:
    return TransformerBlock(
        width,
        dim_heads=64,
        add_rope=True,
        norm_type="dyt" if dyt else "rms_norm",
        attn_kwargs={"qk_norm": "dyt" if dyt else "rms", "feat_scale": True},
        ff_kwargs={"mult": 2, "no_bias": False},
    )


def draw_blocks(batch: int, length: int, block_size: int, num_blocks: int) -> Tensor:
    """Return masks (b, t) that are True in blocks at random places, which may overlap."""
    mask = torch.zeros(batch, length, dtype=torch.bool)
    place = torch.arange(length)
    for _ in range(num_blocks):
        start = torch.randint(0, length - block_size, (batch,))[:, None]
        mask |= (place >= start) & (place < start + block_size)
    return mask


class LatentJEPA(nn.Module):
    """Predicts masked stretches of latents from the rest (joint-embedding prediction, Assran et al. 2023)."""

    def __init__(
        self,
        latent_dim: int,
        transformer_dim: int,
        depth: int,
        mask_rate: float = 0.4,
        mask_block_size: int = 8,
        dyt: bool = True,
    ) -> None:
        super().__init__()
        self.mask_rate, self.mask_block_size = mask_rate, mask_block_size
        blocks = [_block(transformer_dim, dyt) for _ in range(depth)]
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, transformer_dim), *blocks, nn.Linear(transformer_dim, latent_dim)
        )
        self.mask_token = nn.Parameter(1e-2 * torch.randn(1, latent_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (b, d, t) -> (b, d, t)"""
        out: Tensor = self.layers(x.mT)
        return out.mT

    def loss(self, x: Tensor) -> Tensor:
        """Return the Huber distance of the prediction in masked stretches; its target gets no gradient."""
        blocks = int(self.mask_rate * x.shape[-1] / self.mask_block_size)
        mask = draw_blocks(len(x), x.shape[-1], self.mask_block_size, blocks).to(x.device)[:, None].expand_as(x)
        predicted = self(torch.where(mask, self.mask_token, x))
        distance = F.huber_loss(predicted, x.detach(), reduction="none")
        return torch.where(mask, distance, 0).sum() / mask.sum().clamp(min=1)


class LatentAudioCritic(nn.Module):
    """Scores whether latents and audio (and text) belong together, from one token after all of theirs."""

    def __init__(
        self,
        audio_dim: int,
        latent_dim: int,
        text_dim: int | None = None,
        transformer_dim: int = 512,
        depth: int = 4,
        seq_mask_rate: float = 0.4,
        feature_mask_rate: float = 0.35,
        latent_mask_rate: float = 0.1,
        volume_aug_depth: float = 0.2,
        margin: float = 0.5,
        dyt: bool = False,
    ) -> None:
        super().__init__()
        self.seq_mask_rate, self.feature_mask_rate = seq_mask_rate, feature_mask_rate
        self.latent_mask_rate, self.volume_aug_depth, self.margin = latent_mask_rate, volume_aug_depth, margin
        self.use_text = text_dim is not None
        self.audio_mapping = nn.Linear(audio_dim, transformer_dim)
        self.latent_mapping = nn.Linear(latent_dim, transformer_dim)
        if text_dim is not None:
            self.text_mapping = nn.Linear(text_dim, transformer_dim)
        self.critic_mapping = weight_norm(nn.Linear(transformer_dim, 1))
        self.critic_token = nn.Parameter(1e-2 * torch.randn(1, 1, transformer_dim))
        self.discriminators = nn.ModuleList(_block(transformer_dim, dyt) for _ in range(depth))

    def forward(
        self, audio: Tensor, latent: Tensor, text: Tensor | None = None, masking: bool = True
    ) -> tuple[Tensor, Tensor]:
        """audio (b, c, n), latent (b, d, t), text (b, s, e) -> scores (b, 1) and the states of the audio.

        `masking` hides random frames and features, in training and out of it.
        """
        if masking:
            audio = audio * (1 + self.volume_aug_depth * torch.rand(1, device=audio.device))
        heard, latents = self.audio_mapping(audio.mT), self.latent_mapping(latent.mT)
        if masking:
            hidden = torch.rand(*heard.shape[:2], 1, device=heard.device) < self.seq_mask_rate
            heard = F.dropout(heard.masked_fill(hidden, 0.0), self.feature_mask_rate)
            latents = F.dropout(latents, self.latent_mask_rate)
            latents = latents + torch.randn_like(latents) * _LATENT_NOISE
        words = [self.text_mapping(text)] if self.use_text and text is not None else []
        states = torch.cat([heard, *words, latents, self.critic_token.expand(len(heard), -1, -1)], dim=1)
        for block in self.discriminators:
            states = block(states)
        scores: Tensor = self.critic_mapping(F.normalize(states[:, -1], dim=-1, eps=1e-5))
        return scores, states[:, : heard.shape[1]]

    def loss(self, audio: Tensor, latent: Tensor, text: Tensor | None = None, checkpointing: bool = True) -> Tensor:
        """Return how far the scores of true pairs lie less than `margin` above those of pairs shifted in the batch."""

        def score(*inputs: Tensor | None) -> Tensor:
            forward: Callable[..., Any] = self.forward
            return (checkpoint(forward, *inputs, use_reentrant=False) if checkpointing else forward(*inputs))[0]

        true = score(audio, latent, text)
        shifts = range(1, 1 + min(_MOST_PAIRS // (3 * len(audio)), len(audio) - 1))
        terms = []
        for shift in shifts:
            other_audio = audio.roll(shift, 0)
            false = [score(other_audio, latent, text)]
            if text is not None:
                other_text = text.roll(-shift, 0)
                false += [score(audio, latent, other_text), score(other_audio, latent, other_text)]
            terms += [F.softplus(self.margin - (true - wrong).clamp(max=10)).mean() for wrong in false]
        if not terms:  # a batch of one has no other pairs
            return true.sum() * 0
        return torch.nan_to_num(torch.stack(terms).mean())
