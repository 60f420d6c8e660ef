"""Masking thresholds: tones mask their neighbourhood, noise stays below the threshold, silence follows loud parts."""

import torch

from stable_audio_tools.models.psychoacoustics import PsychoacousticStereoNoise

RATE = 16000


def tone(hertz: float, samples: int = 4096) -> torch.Tensor:
    wave = 0.5 * torch.sin(2 * torch.pi * hertz / RATE * torch.arange(samples))
    return wave.expand(1, 2, -1).clone()


def test_a_tone_masks_its_neighbours_more_than_distant_bins():
    threshold = PsychoacousticStereoNoise(RATE, n_fft=256, hop=64).calc_threshold(tone(2000))[0, 0, :, 30]
    assert threshold.argmax() in (31, 32, 33)  # 2 kHz is bin 32
    assert threshold[32] > 100 * threshold[16] and threshold[32] > 10 * threshold[48]


def test_noise_lies_below_the_threshold_and_follows_the_seed():
    shaper, x = PsychoacousticStereoNoise(RATE, n_fft=256, hop=64, snr_below_threshold_db=10.0), tone(2000)
    torch.manual_seed(0)
    noise = shaper(x)
    torch.manual_seed(0)
    assert torch.equal(noise, shaper(x)) and noise.shape == x.shape
    spectrum = torch.stft(noise[0], 256, 64, window=torch.hann_window(256), return_complex=True)
    allowed = shaper.calc_threshold(x)[0, :, 28:37].mean()
    assert spectrum.abs().square()[:, 28:37].mean() < allowed


def test_masking_rings_on_after_the_tone_and_transients_shorten_it():
    x = tone(1000)
    x[..., 2048:] = 0
    decays = []
    for adaptive in (False, True):
        shaper = PsychoacousticStereoNoise(RATE, n_fft=256, hop=64, adaptive_temporal=adaptive)
        threshold = shaper.calc_threshold(x)[0, 0, 16]
        decays.append(threshold[36] / threshold[20])
    assert 0 < decays[1] < decays[0] < 1


def test_a_silent_channel_unmasks_low_frequencies():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4096)
    x[:, 1] = 0
    with_unmasking, without = (
        PsychoacousticStereoNoise(RATE, n_fft=256, hop=64, enable_bmld=enabled).calc_threshold(x)
        for enabled in (True, False)
    )
    ratio = (with_unmasking / without).mean((0, 1, 3))
    assert ratio[2:6].max() < 0.5 and ratio[-4:].min() > 0.98


def test_one_channel_counts_as_two_equal_ones():
    shaper, x = PsychoacousticStereoNoise(RATE, n_fft=256, hop=64), tone(500)
    torch.testing.assert_close(shaper.calc_threshold(x[:, :1]), shaper.calc_threshold(x))
    assert shaper(x[:, :1].bfloat16()).dtype == torch.bfloat16
