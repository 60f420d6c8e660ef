"""Mel spectrograms and back: CPU time and closeness of the ways to decode; some two minutes on one core.

python benchmarks/mel.py [--repeats 3] [--seconds 12] [--json outputs/mel.json]

The audio-diffusion project decodes with librosa: bands to bins by NNLS, then Griffin-Lim, one image after another.
Closeness is the mean distance in dB between the decoded bands and the bands of the resulting audio.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import librosa
import torch
from torch import Tensor

from stable_audio_tools.core.files import write_text
from stable_audio_tools.data.example_clips import RATE, example_clips
from stable_audio_tools.mel.bigvgan import PUBLISHED, BigVGAN
from stable_audio_tools.mel.filterbank import MelBands, mel_filterbank
from stable_audio_tools.mel.transforms import DecibelMel
from stable_audio_tools.mel.vocoders import GriffinLimVocoder, invert_mel

SETTINGS = ((2048, 512, 256), (1024, 256, 128), (1024, 256, 100))  # n_fft, hop, bands
ITERATIONS = 32


class Row(NamedTuple):
    """One measurement; `decibels` is None where only time was measured."""

    setting: str
    what: str
    seconds: float
    decibels: float | None = None


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(median CPU seconds, result), after one run that counts for nothing."""
    made, spent = run(), []
    for _ in range(repeats):
        start = time.process_time()
        made = run()
        spent.append(time.process_time() - start)
    return statistics.median(spent), made


def clips(seconds: float) -> Tensor:
    """(clips, n): one of each sort, repeated to the length."""
    waves = torch.stack([torch.from_numpy(clip.wave.mean(1)).float() for clip in example_clips(1)])
    length = round(seconds * RATE)
    return waves.repeat(1, -(-length // waves.shape[1]))[:, :length]


def distance(transform: DecibelMel, mel: Tensor, audio: Tensor) -> float:
    again = transform.to_physical(transform.encode(audio))
    return float((10 * (again / transform.to_physical(mel)).log10()).abs().mean())


def librosa_inversion(power: Tensor, bands: MelBands) -> Tensor:
    bank = mel_filterbank(bands)
    return torch.stack([torch.from_numpy(librosa.util.nnls(bank, item.numpy())).float() for item in power])


def librosa_decoding(power: Tensor, transform: DecibelMel) -> Tensor:
    """Power bands to audio as audio-diffusion does."""
    bands, framing = transform.bands, transform.framing
    made = [
        librosa.feature.inverse.mel_to_audio(
            item.numpy(), sr=bands.sample_rate, n_fft=bands.n_fft, hop_length=framing.hop_length, n_iter=ITERATIONS
        )
        for item in power
    ]
    return torch.stack(
        [torch.from_numpy(librosa.util.fix_length(wave, size=_length(power, transform))) for wave in made]
    )


def _length(power: Tensor, transform: DecibelMel) -> int:
    return power.shape[-1] * transform.framing.hop_length


def measure_decoding(setting: tuple[int, int, int], seconds: float, repeats: int) -> list[Row]:
    n_fft, hop, mels = setting
    transform = DecibelMel(MelBands(RATE, n_fft, mels), n_fft, hop, n_fft)
    name = f"{mels} bands, n_fft {n_fft}, hop {hop}"
    audio = clips(seconds)
    spent, mel = timed(lambda: transform.encode(audio), repeats)
    rows = [Row(name, "encode", spent)]
    power = transform.to_physical(mel)
    for method in ("pinv", "nnls"):
        spent, _ = timed(lambda method=method: invert_mel(power, transform.bands, method), repeats)
        rows.append(Row(name, f"bands to bins, {method}", spent))
    spent, _ = timed(lambda: librosa_inversion(power, transform.bands), 1)
    rows.append(Row(name, "bands to bins, librosa", spent))
    for method in ("pinv", "nnls"):
        vocoder = GriffinLimVocoder(n_iter=ITERATIONS, inversion=method)  # type: ignore[arg-type]
        spent, made = timed(lambda vocoder=vocoder: vocoder.decode(mel, transform), repeats)
        rows.append(Row(name, f"decode, {method}", spent, distance(transform, mel, made)))
    spent, made = timed(lambda: librosa_decoding(power, transform), 1)
    rows.append(Row(name, "decode, librosa", spent, distance(transform, mel, made)))
    return rows


@torch.no_grad()
def vocoders() -> list[Row]:
    """The smallest BigVGAN on one second, with random weights: the time does not depend on them."""
    name = "bigvgan_base_22khz_80band"
    config = PUBLISHED[name]
    mel = torch.randn(1, config.num_mels, config.sampling_rate // config.hop_size)
    network = BigVGAN(config).eval()
    spent, _ = timed(lambda: network(mel), 1)
    return [Row("1 s", name, spent)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    made.add_argument("--seconds", type=float, default=12.0, help="length of each of five clips")
    made.add_argument("--json", type=Path, help="write the figures there too")
    return made


def main() -> int:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    rows = []
    for work in (*(partial(measure_decoding, one, arguments.seconds, arguments.repeats) for one in SETTINGS), vocoders):
        for row in work():
            closeness = "" if row.decibels is None else f"{row.decibels:6.2f} dB"
            print(f"{row.setting:30} {row.what:26} {row.seconds:9.4f} s {closeness}", flush=True)
            rows.append(row)
    if arguments.json is not None:
        write_text(arguments.json, json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
