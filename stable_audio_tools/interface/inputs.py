"""Values that visitors send, checked before generation starts: control values within bounds, uploads of audio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.core.config.sentences import show
from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io
from stable_audio_tools.interface.controls import Control

LONGEST_SECONDS = 600.0
MOST_BYTES = 256 * 2**20
MOST_CHANNELS = 8
HIGHEST_RATE = 192_000
MOST_VALUES = 64_000_000  # samples of all channels together at the model's rate: 256 MB
_BLOCK_SECONDS = 10.0  # decoded at a time, since a small file can hold very many samples


# ------------------------------------------------------------------ values of controls


def checked(controls: Sequence[Control], values: Sequence[object]) -> dict[str, Any]:
    """Return values by the names of their controls, uploads as paths; raise ValueError for a value out of bounds."""
    return {control.name: _checked(control, value) for control, value in zip(controls, values, strict=True)}


def refusal(control: Control, allowed: str, value: object) -> str:
    """Return the message for a value that a control does not allow."""
    got = "nothing" if value is None else show(value)
    return f"{control.label} ({control.name}): must be {allowed}, got {got}"


def _checked(control: Control, value: Any) -> object:
    if control.kind == "audio":
        return None if value is None else value["path"] or None
    if control.kind in ("text", "prompt", "spans", "areas"):
        is_text = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
        return _require(value is None or is_text, control, "text", value)
    if control.kind == "switch":
        return _require(isinstance(value, bool), control, "true or false", value)
    if control.kind == "choice":
        return _require(value in control.choices, control, f"one of {', '.join(control.choices)}", value)
    low, high = control.minimum, control.maximum
    assert low is not None and high is not None, "numbers have bounds"
    is_whole = control.kind == "integer" or control.step == 1
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    fits = fits and (not is_whole or value == int(value))
    _require(fits, control, f"a {'whole ' if is_whole else ''}number from {low} to {high}", value)
    return int(value) if is_whole else value


def _require(fits: bool, control: Control, allowed: str, value: object) -> object:
    if not fits:
        raise ValueError(refusal(control, allowed, value))
    return value


# ------------------------------------------------------------------ uploads


def read_upload(path: str | Path, sample_rate: int, longest_seconds: float = LONGEST_SECONDS) -> audio_io.Audio:
    """Decode an uploaded file at the model's rate; raise AudioError if it is not audio or too large.

    Only formats that libsndfile decodes are accepted: other decoders open further files that a file names.
    """
    path = Path(path)
    name = path.name
    if path.suffix.lower() not in audio_io.LIBSNDFILE_SUFFIXES:
        kinds = ", ".join(sorted(suffix[1:] for suffix in audio_io.LIBSNDFILE_SUFFIXES))
        raise AudioError(f"{name}: this type of file is not accepted; upload one of {kinds}")
    try:
        about = audio_io.info(path)
        if about.frames == 0:
            raise AudioError(f"{name}: holds no samples")
        if about.channels > MOST_CHANNELS:
            raise AudioError(f"{name}: has {about.channels} channels; at most {MOST_CHANNELS} are accepted")
        if about.seconds > longest_seconds:
            raise AudioError(f"{name}: is {about.seconds:.1f} s long; at most {longest_seconds:g} s are accepted")
        if about.sample_rate > HIGHEST_RATE:
            raise AudioError(f"{name}: is sampled at {about.sample_rate} Hz; at most {HIGHEST_RATE} Hz are accepted")
        if (values := about.seconds * sample_rate * about.channels) > MOST_VALUES:
            raise AudioError(
                f"{name}: is {values / 1e6:.0f} million samples at the model's rate; at most "
                f"{MOST_VALUES / 1e6:.0f} million are accepted; shorten it, or mix it down to two channels"
            )
        # Decoded and resampled a block at a time, so that only the audio at the model's rate is in memory.
        block, blocks = max(1, round(_BLOCK_SECONDS * sample_rate)), []
        total = audio_io.resampled_length(about.frames, about.sample_rate, sample_rate)
        for start in range(0, total, block):
            blocks.append(audio_io.read(path, start, min(block, total - start), sample_rate).samples)
        samples = torch.cat(blocks, dim=1)
        if not samples.isfinite().all():
            raise AudioError(f"{name}: holds NaN or infinite samples; export it again without them")
        return audio_io.Audio(samples, sample_rate)
    except AudioError as error:
        raise AudioError(str(error).replace(str(path), name)) from None  # visitors must not see server paths
