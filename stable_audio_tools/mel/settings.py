"""Settings of spectrogram datasets, of decoding spectrograms, and of pipeline folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.settings import Settings, flag_of, option
from stable_audio_tools.data.settings import AudioFileSettings

OVERLAP_FRAMES = 64  # of neighbouring chunks; more than twice BigVGAN's receptive field

MelMethod = Literal["image", "bigvgan"]


@dataclass(frozen=True, kw_only=True)
class ImageFlags(Settings):
    """Settings of a dataset of spectrograms; None means the value of the vocoder or model, or the usual value."""

    input_dir: str = option(help="audio files, subfolders included", metavar="DIR")
    output_dir: str = option("data", "folder to write to", metavar="DIR")
    format: Literal["latents", "arrow"] = option("latents", "what is written")
    resolution: str = option("256", "frames and bands of a slice; N is N,N", group="spectrogram", metavar="W[,H]")
    mel_spec_method: MelMethod | None = option(
        None, "8-bit decibels, or log amplitudes; default: image", group="spectrogram"
    )
    bigvgan_model: str | None = option(
        None, "the published vocoder whose bands are computed", group="spectrogram", metavar="NAME"
    )
    hop_length: int | None = option(
        None, "image: samples between frames; default: 256", group="spectrogram", metavar="N", ge=1
    )
    n_fft: int | None = option(
        None, "image: samples of a spectrum; default: 1024", group="spectrogram", metavar="N", ge=2
    )
    sample_rate: int | None = option(
        None, "image: rate to resample to; default: 22050", group="spectrogram", metavar="HZ", ge=1
    )
    num_channels: Literal[1, 2] | None = option(None, "channels; 1, the default, folds to mono", group="spectrogram")
    model_config: str | None = option(
        None,
        "take rate, channels, bands and mel transform of this model instead",
        group="spectrogram",
        metavar="JSON",
    )
    max_examples: int | None = option(None, "cut the first N slices only", group="work", metavar="N", ge=1)
    num_workers: int = option(2, "processes that read and transform", group="work", metavar="N", ge=0)
    half: bool = option(False, "keep latents in float16", group="work")
    push_to_hub: str | None = option(
        None, "upload the folder to this dataset repository on huggingface.co", group="work", metavar="NAME"
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.format == "arrow" and self.half:
            yield "--half: an Arrow dataset holds images, or float32; leave the flag out"
        output = Path(self.output_dir).absolute()
        existing = next(path for path in (output, *output.parents) if path.exists())
        if not existing.is_dir():
            yield f"--output-dir: {existing} is a file; choose a folder"
        parts = self.resolution.split(",")
        if len(parts) > 2 or not all(part.strip().isdigit() and int(part) for part in parts):
            yield f"--resolution: expected frames, or frames,bands, as in 2048,128; got {self.resolution!r}"

    @property
    def frames(self) -> int:
        """Frames of a slice."""
        return int(self.resolution.split(",")[0])

    @property
    def mels(self) -> int:
        """Bands of a slice; as many as frames where one number is given."""
        return int(self.resolution.split(",")[-1])

    def contradictions(self, has: dict[str, object], whose: str) -> list[str]:
        """Return a sentence for each option that was set and differs from a vocoder or model."""
        return [
            f"{flag_of(name)}: {whose} has {value}, not {given}; leave the flag out"
            for name, value in has.items()
            if (given := getattr(self, name)) not in (None, value)
        ]


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(AudioFileSettings):
    """Settings of decoding spectrograms; `chunk_frames` bounds the memory of long ones."""

    chunk_frames: int | None = option(
        None, "frames at once, for spectrograms of many minutes", metavar="N", gt=OVERLAP_FRAMES
    )


@dataclass(frozen=True, kw_only=True)
class DecodeFlags(DecodeSettings):
    """The spectrograms to decode, and their decoder."""

    directory: Path = option(help="folder of spectrograms", metavar="DIR")
    output_dir: Path | None = option(None, "folder to write to; default: DIR/audio", metavar="DIR")
    bigvgan_model: str | None = option(
        None,
        "a published name, a weight file, or a folder with config.json; default without --model-config: "
        "bigvgan_v2_44khz_128band_256x",
        metavar="NAME",
    )
    bigvgan_config: str | None = option(None, "its config.json, if it is elsewhere", metavar="JSON")
    model_config: str | None = option(None, "a model whose mel transform and vocoder are used", metavar="JSON")
    device: str = option("auto", "cpu, cuda, mps, or the best available")
    json: bool = option(False, "print a line of JSON for each file")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.bigvgan_model is not None and self.model_config is not None:
            yield "give either --bigvgan-model, or --model-config with a vocoder"
        if self.bigvgan_config is not None and self.bigvgan_model is None:
            yield "--bigvgan-config: goes with --bigvgan-model"
