"""`AudioAutoencoder`: audio to latents and back, whole or in chunks.

Encoding goes pretransform -> encoder -> bottleneck, decoding the same way back. In chunks the networks see several at
once, while the bottleneck, which may draw noise, takes them one by one: the draws do not depend on the batching.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.models.autoencoders.chunking import ChunkPlan, in_batches, join_info
from stable_audio_tools.models.autoencoders.preprocessing import batch_clips
from stable_audio_tools.models.autoencoders.weight_norm import folded_weight_norm
from stable_audio_tools.models.bottleneck.base import DiscreteBottleneck

if TYPE_CHECKING:
    from stable_audio_tools.models.bottleneck import Bottleneck
    from stable_audio_tools.models.pretransforms.base import Pretransform


# Per thread, since other threads may use the same codec.
_REPLAYS: ContextVar["Mapping[AudioAutoencoder, Replay]"] = ContextVar("replays", default={})  # noqa: B039


@contextmanager
def analysed_once(codec: nn.Module | None) -> Iterator[Callable[[], None]]:
    """Run the encoder of a codec only in the first of several passes over the same clip.

    The bottleneck still draws noise in every pass. Call the yielded function before each pass.
    """
    parts = [] if codec is None else [part for part in codec.modules() if isinstance(part, AudioAutoencoder)]
    replays = {part: Replay() for part in parts}

    def begin() -> None:
        for replay in replays.values():
            replay.position = 0

    token = _REPLAYS.set(replays)
    try:
        yield begin
    finally:
        _REPLAYS.reset(token)


class Replay:
    """Results of the calls of one pass, in order, for passes that make the same calls."""

    def __init__(self) -> None:
        self._results: list[Tensor] = []
        self.position = 0

    def next(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return the result of the next call; it is computed in the first pass."""
        if self.position == len(self._results):
            self._results.append(compute())
        self.position += 1
        return self._results[self.position - 1]


class AudioAutoencoder(nn.Module):
    """Encoder, bottleneck and decoder; `downsampling_ratio` samples of audio make one frame of latents."""

    def __init__(
        self,
        encoder: nn.Module | None,
        decoder: nn.Module | None,
        latent_dim: int,
        downsampling_ratio: int,
        sample_rate: int,
        io_channels: int = 2,
        bottleneck: "Bottleneck | None" = None,
        pretransform: "Pretransform | None" = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
        soft_clip: bool = False,
    ) -> None:
        super().__init__()
        # Optimiser states in checkpoints count parameters in this order.
        self.bottleneck = bottleneck
        self.encoder = encoder
        self.decoder = decoder
        self.pretransform = pretransform
        self.sample_rate = sample_rate
        self.io_channels = io_channels
        self.in_channels = io_channels if in_channels is None else in_channels
        self.out_channels = io_channels if out_channels is None else out_channels
        self.latent_dim = latent_dim
        self.downsampling_ratio = self.min_length = downsampling_ratio
        self.soft_clip = soft_clip
        self.is_discrete = bottleneck is not None and bottleneck.is_discrete

    @property
    def audio_channels(self) -> int:
        """Number of channels of the audio that `encode` takes."""
        return self.in_channels if self.pretransform is None else self.pretransform.io_channels

    # ------------------------------------------------------------------ one pass

    def encode(
        self,
        audio: Tensor,
        skip_bottleneck: bool = False,
        return_info: bool = False,
        skip_pretransform: bool = False,
        iterate_batch: bool | int = False,
        override_stride: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode audio (b, c, n) to latents (b, d, t); with `return_info`, also return the info of the bottleneck.

        `iterate_batch` runs the networks on that many items at a time (True: one). `override_stride` goes to an encoder
        of variable strides, other keywords to the bottleneck. With `skip_pretransform`, `audio` is the output of the
        pretransform.
        """
        features = self._analyse(audio, skip_pretransform, iterate_batch, override_stride)
        latents, info = self._compress(features, skip_bottleneck, **kwargs)
        return (latents, info) if return_info else latents

    def decode(
        self,
        latents: Tensor,
        skip_bottleneck: bool = False,
        iterate_batch: bool | int = False,
        skip_pretransform: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Decode latents (b, d, t) to audio (b, c, n), or with `skip_pretransform` to the input of the pretransform.

        Other keywords go to the decoder.
        """
        expanded = self._expand(latents, skip_bottleneck, iterate_batch)
        return self._synthesise(expanded, iterate_batch, skip_pretransform, **kwargs)

    def decode_tokens(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """Decode codes, in the layout of the bottleneck's `encode`, to audio (b, c, n)."""
        if not isinstance(self.bottleneck, DiscreteBottleneck):
            name = "absent" if self.bottleneck is None else type(self.bottleneck).__name__
            raise ValueError(f"only a discrete bottleneck has tokens to decode; this model's bottleneck is {name}")
        latents = self.bottleneck.decode_codes(tokens)
        # Quantisers stay in float32 where the nets are in half precision.
        weight = latents if self.decoder is None else next(self.decoder.parameters(), latents)
        return self.decode(latents.to(weight.dtype), skip_bottleneck=True, **kwargs)

    def _analyse(
        self,
        audio: Tensor,
        skip_pretransform: bool = False,
        iterate_batch: bool | int = False,
        override_stride: Sequence[int] | None = None,
    ) -> Tensor:
        """Apply the deterministic part of encoding: pretransform and encoder."""
        self._check_audio(audio, skip_pretransform)
        replay = _REPLAYS.get().get(self)
        if replay is not None:
            return replay.next(lambda: self._compute_features(audio, skip_pretransform, iterate_batch, override_stride))
        return self._compute_features(audio, skip_pretransform, iterate_batch, override_stride)

    def _compute_features(
        self,
        audio: Tensor,
        skip_pretransform: bool,
        iterate_batch: bool | int,
        override_stride: Sequence[int] | None,
    ) -> Tensor:
        if self.pretransform is not None and not skip_pretransform:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._is_in_graph(audio)):
                audio = _in_turn(self.pretransform.encode, audio, iterate_batch)
        if self.encoder is None:
            return audio
        options = {} if override_stride is None else {"override_stride": override_stride}
        return _in_turn(partial(self.encoder, **options), audio, iterate_batch)

    def _compress(self, features: Tensor, skip_bottleneck: bool, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        info: dict[str, Tensor] = {"pre_bottleneck_latents": features}
        if self.bottleneck is None or skip_bottleneck:
            return features, info
        latents, details = self.bottleneck.encode(features, return_info=True, **kwargs)
        return latents, {**info, **details}

    def _expand(self, latents: Tensor, skip_bottleneck: bool = False, iterate_batch: bool | int = False) -> Tensor:
        self._check_latents(latents, skip_bottleneck)
        if self.bottleneck is None or skip_bottleneck:
            return latents
        return _in_turn(self.bottleneck.decode, latents, iterate_batch)

    def _synthesise(
        self, latents: Tensor, iterate_batch: bool | int = False, skip_pretransform: bool = False, **kwargs: Any
    ) -> Tensor:
        """Apply the deterministic part of decoding: decoder and pretransform."""
        assert self.decoder is not None
        audio = _in_turn(partial(self.decoder, **kwargs), latents, iterate_batch)
        if self.pretransform is not None and not skip_pretransform:
            # Gradients pass through a frozen pretransform: the decoder before it learns from the audio.
            audio = _in_turn(self.pretransform.decode, audio, iterate_batch)
        return torch.tanh(audio) if self.soft_clip else audio

    def _is_in_graph(self, audio: Tensor) -> bool:
        return audio.requires_grad or (self.pretransform is not None and self.pretransform.enable_grad)

    def _check_audio(self, audio: Tensor, skip_pretransform: bool) -> None:
        if audio.ndim != 3:
            raise AudioError(f"audio must be shaped (batch, channels, samples), got {tuple(audio.shape)}")
        if self.pretransform is not None and skip_pretransform:
            return
        if audio.shape[1] != self.audio_channels:
            raise AudioError(
                f"audio has {audio.shape[1]} channels, this model takes {self.audio_channels}; "
                "preprocess_audio_for_encoder mixes or spreads them"
            )
        if audio.shape[-1] < self.downsampling_ratio and not getattr(self.encoder, "pads_to_frames", False):
            raise AudioError(
                f"audio of {audio.shape[-1]} samples is shorter than one frame of latents ({self.downsampling_ratio} "
                f"samples, {self.downsampling_ratio / self.sample_rate:.3f} s); preprocess_audio_for_encoder pads it"
            )

    def _check_latents(self, latents: Tensor, skip_bottleneck: bool) -> None:
        any_width = self.bottleneck is None or skip_bottleneck
        if latents.ndim != 3 or not (any_width or latents.shape[1] == self.latent_dim):
            raise ValueError(
                f"latents must be shaped (batch, {self.latent_dim}, frames) for this model, got {tuple(latents.shape)}"
            )

    # ------------------------------------------------------------------ preparation

    def preprocess_audio_for_encoder(self, audio: Tensor, in_sr: int) -> Tensor:
        """Convert a clip (c, n) at `in_sr` Hz to the rate and channels of the model, in whole frames: (1, c, n)."""
        return self.preprocess_audio_list_for_encoder([audio], [in_sr])

    def preprocess_audio_list_for_encoder(
        self, audio_list: Sequence[Tensor], in_sr_list: int | Sequence[int]
    ) -> Tensor:
        """Convert clips (c, n) of any rate, length and channel count to one batch (b, c, n), padded with silence."""
        rates = [in_sr_list] * len(audio_list) if isinstance(in_sr_list, int) else list(in_sr_list)
        if not audio_list:
            raise AudioError("the list of clips is empty")
        if len(rates) != len(audio_list):
            raise AudioError(f"{len(audio_list)} clips but {len(rates)} sample rates; give one rate, or one per clip")
        return batch_clips(audio_list, rates, self.sample_rate, self.audio_channels, self.min_length)

    # ------------------------------------------------------------------ in chunks

    def encode_audio(
        self,
        audio: Tensor,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        max_batch_size: int | None = None,
        crossfade: bool = False,
        *,
        skip_bottleneck: bool = False,
        return_info: bool = False,
        skip_pretransform: bool = False,
        iterate_batch: bool | int = False,
        **kwargs: Any,
    ) -> Any:
        """Encode whole, or in chunks of `chunk_size` frames that overlap by `overlap` frames.

        At most `max_batch_size` chunks go through the encoder at once (None: as many as chunking.MAX_BATCH_SAMPLES
        allows). `crossfade` blends neighbours over the whole overlap instead of cutting in its middle.
        """
        items = _items_at_once(max_batch_size, iterate_batch)
        if not chunked:
            # Pass only options that are set: other code may replace `encode` by a simpler one.
            options: dict[str, Any] = {
                "skip_bottleneck": skip_bottleneck,
                "return_info": return_info,
                "skip_pretransform": skip_pretransform,
                "iterate_batch": items,
            }
            return self.encode(audio, **{name: value for name, value in options.items() if value}, **kwargs)
        self._check_audio(audio, skip_pretransform)
        step = self._samples_per_frame(skip_pretransform)
        plan = ChunkPlan(audio.shape[-1] // step, chunk_size, overlap, crossfade)
        with folded_weight_norm(self):
            analyse = partial(self._analyse, skip_pretransform=skip_pretransform)
            features = in_batches(analyse, plan.split(audio, step), self.downsampling_ratio / step, items)
            compressed = [self._compress(chunk, skip_bottleneck, **kwargs) for chunk in features]
        latents = plan.join([chunk for chunk, _ in compressed], 1)
        if not return_info:
            return latents
        return latents, join_info(plan, [info for _, info in compressed], [chunk.shape[-1] for chunk in features])

    def decode_audio(
        self,
        latents: Tensor,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        max_batch_size: int | None = None,
        crossfade: bool = False,
        *,
        skip_bottleneck: bool = False,
        iterate_batch: bool | int = False,
        **kwargs: Any,
    ) -> Tensor:
        """Decode whole or in chunks; the options are the same as in `encode_audio`."""
        items = _items_at_once(max_batch_size, iterate_batch)
        if not chunked:
            options: dict[str, Any] = {"skip_bottleneck": skip_bottleneck, "iterate_batch": items}
            return self.decode(latents, **{name: value for name, value in options.items() if value}, **kwargs)
        self._check_latents(latents, skip_bottleneck)
        plan = ChunkPlan(latents.shape[-1], chunk_size, overlap, crossfade)
        with folded_weight_norm(self):
            chunks = [self._expand(chunk, skip_bottleneck) for chunk in plan.split(latents, 1)]
            audio = in_batches(partial(self._synthesise, **kwargs), chunks, self.downsampling_ratio, items)
        return plan.join(audio, self.downsampling_ratio)

    @torch.no_grad()
    def reconstruct_audio(
        self,
        audio: Tensor,
        chunked: bool = True,
        chunk_size: int = 128,
        overlap: int = 4,
        max_batch_size: int | None = 1,
        **kwargs: Any,
    ) -> Tensor:
        """Encode and decode; in chunks, neighbours are cross-faded as audio. Keywords go to `encode`."""

        def pass_through(part: Tensor) -> Tensor:
            return self.decode(self.encode(part, **kwargs))

        if not chunked:
            return pass_through(audio)
        self._check_audio(audio, skip_pretransform=False)
        plan = ChunkPlan(audio.shape[-1] // self.downsampling_ratio, chunk_size, overlap, crossfade=True)
        with folded_weight_norm(self):
            decoded = in_batches(pass_through, plan.split(audio, self.downsampling_ratio), 1.0, max_batch_size)
        return plan.join(decoded, self.downsampling_ratio)

    def _samples_per_frame(self, skip_pretransform: bool) -> int:
        if self.pretransform is None or not skip_pretransform:
            return self.downsampling_ratio
        return self.downsampling_ratio // self.pretransform.downsampling_ratio


def _in_turn(function: Callable[[Tensor], Tensor], x: Tensor, items: bool | int) -> Tensor:
    """Call on the whole batch, or on `items` entries at a time (True: one)."""
    if not items or len(x) <= int(items):
        return function(x)
    return torch.cat([function(part) for part in x.split(int(items))])


def _items_at_once(max_batch_size: int | None, iterate_batch: bool | int) -> int | None:
    """Return how many clips go through the networks together; None if the caller set no limit."""
    return int(iterate_batch) if iterate_batch else max_batch_size
