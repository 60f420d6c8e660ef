"""Files that visitors hand in: the right kind, not too long, and nothing but a file they uploaded."""

from pathlib import Path

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io

LONGEST_SECONDS = 600.0
MOST_BYTES = 256 * 2**20
MOST_CHANNELS = 8


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
        audio = audio_io.read(path, sample_rate=sample_rate)
        if not audio.samples.isfinite().all():
            raise AudioError(f"{name}: holds NaN or infinite samples; export it again, without them")
        return audio
    except AudioError as error:
        raise AudioError(str(error).replace(str(path), name)) from None  # visitors need not know where it lies
