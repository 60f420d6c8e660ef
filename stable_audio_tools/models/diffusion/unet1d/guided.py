"""The U-Net with embeddings to attend to and classifier-free guidance by a learned null sequence."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.models.diffusion.guidance import Guidance
from stable_audio_tools.models.diffusion.unet1d.embeddings import FixedEmbedding, time_embedding
from stable_audio_tools.models.diffusion.unet1d.options import takes_options_of
from stable_audio_tools.models.diffusion.unet1d.unet import Positive, UNet1d


@takes_options_of(UNet1d)
class UNetCFG1d(UNet1d):
    """A learned sequence, the same for every input, stands for the absent condition."""

    def __init__(
        self,
        *,
        context_embedding_max_length: Annotated[int, Field(ge=1, description="longest condition, in tokens")],
        context_embedding_features: Positive,
        use_xattn_time: Annotated[bool, Field(description="append the noise level as a token")] = False,
        **options: Any,
    ) -> None:
        super().__init__(context_embedding_features=context_embedding_features, **options)
        self.to_time_embedding = (
            time_embedding(options["channels"], context_embedding_features) if use_xattn_time else None
        )
        self.fixed_embedding = FixedEmbedding(
            context_embedding_max_length + int(use_xattn_time), context_embedding_features
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        *,
        features: Tensor | None = None,
        channels_list: Sequence[Tensor] | None = None,
        embedding: Tensor | None = None,
        embedding_mask: Tensor | None = None,
        embedding_scale: float = 1.0,
        embedding_mask_proba: float = 0.0,
        rescale_cfg: bool = False,
        scale_phi: float = 0.4,
        batch_cfg: bool = False,
        negative_embedding: Tensor | None = None,
        negative_embedding_mask: Tensor | None = None,
    ) -> Tensor:
        """As `UNet1d`, with guidance where `embedding_scale` is not 1.

        `batch_cfg` runs both passes as one batch; the numbers are the same. With `rescale_cfg` the deviation over
        channels is brought back to the conditioned one's by the share `scale_phi` (Lin et al. 2023, eq. 15-16).
        `embedding_mask_proba` is the chance that an item loses its condition, for training.
        """
        if embedding is None:
            raise ValueError("this model attends to conditions: name conditioners in cross_attention_cond_ids")
        assert time is not None
        embedding, embedding_mask = self._with_time(embedding, embedding_mask, time)
        null = self.fixed_embedding(embedding)
        if embedding_mask_proba > 0.0:
            dropped = torch.full((len(embedding), 1, 1), embedding_mask_proba, device=embedding.device).bernoulli()
            embedding = torch.where(dropped.bool(), null, embedding)
        if embedding_scale == 1.0:
            return super().forward(
                x,
                time,
                features=features,
                channels_list=channels_list,
                embedding=embedding,
                embedding_mask=embedding_mask,
            )
        unwanted = null
        if negative_embedding is not None:
            unwanted = self._negative(negative_embedding, negative_embedding_mask, time, null)
        passes = self._together if batch_cfg else self._in_turn
        wanted_out, unwanted_out = passes(x, time, features, channels_list, embedding_mask, (embedding, unwanted))
        return Guidance(embedding_scale, rescale=scale_phi if rescale_cfg else 0.0).combine(wanted_out, unwanted_out)

    def _with_time(self, embedding: Tensor, mask: Tensor | None, time: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.to_time_embedding is None:
            return embedding, mask
        token = self.to_time_embedding(time)[:, None]
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return torch.cat([embedding, token], dim=1), mask

    def _negative(self, negative: Tensor, mask: Tensor | None, time: Tensor, null: Tensor) -> Tensor:
        """The negative condition, with the null sequence where it is padding."""
        negative, mask = self._with_time(negative, mask, time)
        if negative.shape != null.shape:
            raise ValueError(
                f"negative condition of {negative.shape[1]} tokens for a condition of {null.shape[1]}: "
                "they must be of one length"
            )
        return negative if mask is None else torch.where(mask.bool()[..., None], negative, null)

    def _together(
        self,
        x: Tensor,
        time: Tensor,
        features: Tensor | None,
        channels_list: Sequence[Tensor] | None,
        mask: Tensor | None,
        embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both passes as one batch of twice the size."""
        out = super().forward(
            torch.cat([x, x]),
            torch.cat([time, time]),
            features=None if features is None else torch.cat([features, features]),
            channels_list=None if channels_list is None else [torch.cat([c, c]) for c in channels_list],
            embedding=torch.cat(embeddings),
            embedding_mask=None if mask is None else torch.cat([mask, mask]),
        )
        wanted, unwanted = out.chunk(2)
        return wanted, unwanted

    def _in_turn(
        self,
        x: Tensor,
        time: Tensor,
        features: Tensor | None,
        channels_list: Sequence[Tensor] | None,
        mask: Tensor | None,
        embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both passes one after the other, in half the memory."""
        wanted, unwanted = (
            UNet1d.forward(
                self,
                x,
                time,
                features=features,
                channels_list=channels_list,
                embedding=embedding,
                embedding_mask=mask,
            )
            for embedding in embeddings
        )
        return wanted, unwanted
