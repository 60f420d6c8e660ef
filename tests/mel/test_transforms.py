import math
from itertools import product

import librosa
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.mel.filterbank import MelBands
from stable_audio_tools.mel.spectra import Framing, pad_mirrored
from stable_audio_tools.mel.transforms import BIGVGAN_RANGE, DecibelMel, LogAmplitudeMel, MelTransform

RATE = 22050
PUBLISHED_SETTINGS = [(2048, 512, 256, 160), (1024, 256, 256, 256), (1024, 256, 128, 320)]  # n_fft, hop, mels, frames


def images(mel: Tensor) -> NDArray[np.uint8]:
    return ((mel + 1) / 2 * 255).round().numpy().astype(np.uint8)


def librosa_image(audio: NDArray[np.float64], n_fft: int, hop: int, mels: int) -> NDArray[np.uint8]:
    """The formula of audio-diffusion, on a slice of one sample less than its frames."""
    power = librosa.feature.melspectrogram(y=audio, sr=RATE, n_fft=n_fft, hop_length=hop, n_mels=mels)
    decibels = librosa.power_to_db(power, ref=np.max, top_db=80)
    return (((decibels + 80) * 255 / 80).clip(0, 255) + 0.5).astype(np.uint8)


@pytest.mark.parametrize(("n_fft", "hop", "mels", "frames"), PUBLISHED_SETTINGS)
def test_db_image_is_librosas_formula_to_the_bit(
    clips: dict[str, Tensor], n_fft: int, hop: int, mels: int, frames: int
) -> None:
    transform = DecibelMel(MelBands(RATE, n_fft, mels), n_fft, hop, n_fft, ref="slice_max", quantize=8)
    for clip in clips.values():
        audio = F.pad(clip[: frames * hop - 1], (0, 1))
        wanted = librosa_image(audio[:-1].numpy(), n_fft, hop, mels)
        assert np.array_equal(images(transform.encode(audio[None]))[0], wanted)
        # From float32 audio librosa's own image differs from its float64 one in about one pixel of 40000, by one step.
        coarse = images(transform.encode(audio[None].float()))[0].astype(int)
        assert np.abs(coarse - wanted).max() <= 1
        assert (coarse != wanted).mean() < 1e-4


def bigvgan_definition(audio: Tensor, n_fft: int, hop: int, bank: Tensor) -> Tensor:
    padding = (n_fft - hop) // 2
    padded = F.pad(audio[:, None], (padding, padding), "reflect")[:, 0]
    spectrum = torch.stft(padded, n_fft, hop, window=torch.hann_window(n_fft), center=False, return_complex=True)
    magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1) + 1e-9)
    return torch.log(torch.clamp(bank @ magnitude, min=1e-5))


@pytest.mark.parametrize(
    ("rate", "n_fft", "hop", "mels", "fmax"),
    [(44100, 2048, 512, 128, None), (44100, 1024, 256, 128, None), (24000, 1024, 256, 100, 12000)],
)
def test_bigvgan_is_its_published_definition(
    clips: dict[str, Tensor], rate: int, n_fft: int, hop: int, mels: int, fmax: float | None
) -> None:
    transform = LogAmplitudeMel(MelBands(rate, n_fft, mels, 0, fmax), n_fft, hop, n_fft)
    bank = torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmax=fmax))
    audio = torch.stack([clip.float() for clip in clips.values()])
    wanted = bigvgan_definition(audio, n_fft, hop, bank)
    assert torch.allclose(transform.log_mel(audio), wanted, atol=1e-5)
    low, high = BIGVGAN_RANGE
    encoded = transform.encode(audio)
    assert torch.allclose(transform.to_log(encoded), wanted.clamp(low, high), atol=1e-5)


def transforms(n_fft: int = 1024, hop: int = 256, mels: int = 64, win: int | None = None) -> list[MelTransform]:
    bands, lengths = MelBands(RATE, n_fft, mels), (n_fft, hop, win or n_fft)
    return [
        DecibelMel(bands, *lengths),
        DecibelMel(bands, *lengths, ref="slice_max", quantize=8),
        LogAmplitudeMel(bands, *lengths),
        LogAmplitudeMel(bands, *lengths, quantize=8),
    ]


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(1024, 256, 1024), (1000, 333, 600), (64, 64, 64), (513, 200, 513)])
def test_n_samples_give_n_over_hop_frames(n_fft: int, hop: int, win: int) -> None:
    for transform, length in product(transforms(n_fft, hop, 8, win), (hop, hop + 1, 2 * hop - 1, 7 * hop, 7 * hop + 3)):
        mel = transform.encode(torch.randn(2, length) * 0.1)
        assert mel.shape == (2, 8, length // hop)
        assert torch.isfinite(mel).all()


def test_less_than_a_frame_is_refused() -> None:
    for transform in transforms():
        with pytest.raises(ValueError, match=r"255 samples is shorter than one frame .*256 samples.*pad it"):
            transform.encode(torch.zeros(1, 255))


def test_silence_is_the_floor_and_clipped_audio_stays_inside() -> None:
    loud = torch.sign(torch.sin(torch.arange(8192) * 0.3))[None] * 4
    for transform in transforms():
        assert torch.equal(transform.encode(torch.zeros(1, 1024)), torch.full((1, 64, 4), -1.0))
        mel = transform.encode(loud)
        assert mel.min() >= -1
        assert mel.max() <= 1
        assert mel.max() > 0.9


def test_silence_beside_sound_does_not_depend_on_its_neighbours() -> None:
    audio = torch.stack([torch.zeros(4096), torch.randn(4096)])
    for transform in transforms():
        together = transform.encode(audio)
        assert torch.allclose(
            together, torch.cat([transform.encode(audio[:1]), transform.encode(audio[1:])]), atol=1e-5
        )


@pytest.mark.parametrize("index", range(4))
def test_physical_units_are_the_inverse(clips: dict[str, Tensor], index: int) -> None:
    """Back and forth once more is the same, up to half a level where values are quantised."""
    transform = transforms()[index]
    mel = transform.encode(clips["bass"][None].float())
    physical = transform.to_physical(mel)
    if isinstance(transform, DecibelMel):
        top = 1.0 if transform.ref == "slice_max" else transform.reference
        again = (10 * (physical / top).log10() + 80) / 40 - 1
    else:
        low, high = BIGVGAN_RANGE
        again = (physical.log() - low) / (high - low) * 2 - 1
    assert torch.allclose(again, mel, atol=1e-5)
    if transform.levels is not None:
        steps = (mel + 1) / 2 * 255
        assert torch.allclose(steps, steps.round(), atol=1e-4)


def test_a_full_scale_sine_on_a_bin_reaches_the_top() -> None:
    """Its level is kept: half the amplitude is 6 dB less."""
    transform = DecibelMel(MelBands(RATE, 1024, 64), 1024, 256, 1024)
    place = torch.arange(8192, dtype=torch.float64)
    sines = torch.stack([torch.sin(2 * math.pi * bin / 1024 * place) for bin in range(2, 60)])
    levels = (transform.encode(sines)[:, :, 4:-4].amax((1, 2)) - 1) * 40
    assert levels.max() == pytest.approx(0, abs=1e-3)
    halved = (transform.encode(sines / 2)[:, :, 4:-4].amax((1, 2)) - 1) * 40
    assert torch.allclose(levels - halved, torch.full_like(levels, 20 * math.log10(2)), atol=1e-3)


def test_mirrored_padding_is_numpys_at_every_length() -> None:
    for length in (1, 2, 3, 10):
        signal = torch.arange(float(length))
        wanted = np.pad(signal.numpy(), (9, 7), mode="reflect")
        assert np.array_equal(pad_mirrored(signal[None], 9, 7)[0].numpy(), wanted)


@pytest.mark.parametrize("place", ["centred", "between"])
@pytest.mark.parametrize(("n_fft", "hop", "win"), [(1024, 256, 1024), (1000, 300, 900), (512, 128, 300)])
def test_spectra_are_inverted_exactly(place: str, n_fft: int, hop: int, win: int) -> None:
    framing = Framing(n_fft, hop, win, place)  # type: ignore[arg-type]
    audio = torch.randn(2, hop * 20, dtype=torch.float64)
    back = framing.synthesise(framing.analyse(audio))
    assert back.shape == audio.shape
    # The last hop lies under the falling end of the last window alone, the first half window where it is short.
    assert torch.allclose(back[:, n_fft:-n_fft], audio[:, n_fft:-n_fft], atol=1e-10)
    assert torch.isfinite(back).all()
