"""Files that visitors hand in: the right kind, not too long, and nothing but a file they uploaded."""

from pathlib import Path

import torch

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io

LONGEST_SECONDS = 600.0
MOST_BYTES = 256 * 2**20
MOST_CHANNELS = 8
HIGHEST_RATE = 192_000
MOST_VALUES = 64_000_000  # samples of all channels together at the model's rate: 256 MB
_BLOCK_SECONDS = 10.0  # decoded at a time, since a small file can hold very many samples


def read_upload(path: str | Path, sample_rate: int, longest_seconds: float = LONGEST_SECONDS) -> audio_io.Audio:
    """The audio of an uploaded file at the model's rate, refused where it is none or too much of it.

    Only formats that libsndfile decodes itself: other decoders follow what a file tells them to open.
    """
    path = Path(path)
    name = path.name
    if path.suffix.lower() not in audio_io.LIBSNDFILE_SUFFIXES:
        kinds = ", ".join(sorted(suffix[1:] for suffix in audio_io.LIBSNDFILE_SUFFIXES))
        raise AudioError(f"{name}: not a kind of audio file that is taken here; use one of {kinds}")
    try:
        about = audio_io.info(path)
        if about.frames == 0:
            raise AudioError(f"{name}: holds no samples")
        if about.channels > MOST_CHANNELS:
            raise AudioError(f"{name}: has {about.channels} channels; at most {MOST_CHANNELS} are taken here")
        if about.seconds > longest_seconds:
            raise AudioError(f"{name}: is {about.seconds:.1f} s long; at most {longest_seconds:g} s are taken here")
        if about.sample_rate > HIGHEST_RATE:
            raise AudioError(f"{name}: is sampled at {about.sample_rate} Hz; at most {HIGHEST_RATE} Hz are taken here")
        if (values := about.seconds * sample_rate * about.channels) > MOST_VALUES:
            raise AudioError(
                f"{name}: is {values / 1e6:.0f} million samples at the model's rate; at most "
                f"{MOST_VALUES / 1e6:.0f} million are taken here; shorten it, or mix it down to two channels"
            )
        audio = _read_in_blocks(path, about, sample_rate)
        if not audio.samples.isfinite().all():
            raise AudioError(f"{name}: holds NaN or infinite samples; export it again, without them")
        return audio
    except AudioError as error:
        raise AudioError(str(error).replace(str(path), name)) from None  # visitors need not know where it lies


def _read_in_blocks(path: Path, about: audio_io.AudioInfo, sample_rate: int) -> audio_io.Audio:
    """Decode and resample a block at a time: only the audio at the model's rate is kept."""
    block, blocks = max(1, round(_BLOCK_SECONDS * sample_rate)), []
    total = audio_io.resampled_length(about.frames, about.sample_rate, sample_rate)
    for start in range(0, total, block):
        blocks.append(audio_io.read(path, start, min(block, total - start), sample_rate).samples)
    return audio_io.Audio(torch.cat(blocks, dim=1), sample_rate)
