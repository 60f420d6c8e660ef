"""Formats that libsndfile does not know (m4a, aac, mp4, webm, ...), through an installed ffmpeg."""

import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from stable_audio_tools.core.errors import AudioError

SUFFIXES = frozenset({".m4a", ".aac", ".mp4", ".webm", ".mka", ".mkv", ".mov", ".wma"})
_TIMEOUT_SECONDS = 600
_DURATION = re.compile(rb"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)")


def available() -> bool:
    """Is there an ffmpeg on the path?"""
    return shutil.which("ffmpeg") is not None


def header(path: Path) -> tuple[int, int, int]:
    """(frames, sample rate, channels); the number of frames is rounded to the container's clock."""
    done = _run(path, ["-map", "0:a:0", "-t", "0", "-f", "wav", "-"], verbose=True)
    duration = _DURATION.search(done.stderr)
    try:
        with sf.SoundFile(io.BytesIO(done.stdout)) as wave:
            rate, channels = wave.samplerate, wave.channels
    except (sf.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{path}: ffmpeg finds no audio in this file ({error})") from None
    hours, minutes, seconds = map(float, duration.groups()) if duration else (0.0, 0.0, 0.0)
    return round((3600 * hours + 60 * minutes + seconds) * rate), rate, channels


def decode(path: Path, channels: int, start: int, frames: int | None) -> NDArray[np.float32]:
    """Samples [start, start + frames) as `(n, c)`, counted from a whole decode, which makes them exact."""
    span = f"atrim=start_sample={start}" + ("" if frames is None else f":end_sample={start + frames}")
    done = _run(path, ["-map", "0:a:0", "-af", span, "-f", "f32le", "-c:a", "pcm_f32le", "-"])
    return np.frombuffer(done.stdout, dtype="<f4").reshape(-1, channels).astype(np.float32)


def _run(path: Path, arguments: list[str], verbose: bool = False) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            f"{path}: {path.suffix} files need ffmpeg, which is not on the path; install it "
            "(apt install ffmpeg, brew install ffmpeg, conda install ffmpeg) or convert the file to flac"
        )
    level = "info" if verbose else "error"
    # "file:" keeps a name such as "a:b.m4a" from being read as a protocol.
    command = [program, "-nostdin", "-hide_banner", "-v", level, "-i", f"file:{path}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AudioError(f"{path}: ffmpeg failed ({error})") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(f"{path}: ffmpeg cannot decode this file ({lines[-1] if lines else done.returncode})")
    return done
