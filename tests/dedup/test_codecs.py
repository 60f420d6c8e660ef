"""Codes of every codec: within their codebooks, repeatable, the same whole and in windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_models import small_model

from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.core.packages import available
from stable_audio_tools.dedup.codecs import Codec, CodecSettings, Sound, SpectralCodec, create_codec
from stable_audio_tools.dedup.codecs.neural import DACCodec, quantize_latents


def sound(seconds: float = 2.0, seed: int = 0) -> Sound:
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 22_050)) / 22_050
    tones = sum(
        np.sin(2 * np.pi * f * time) * (rng.random() + np.sin(time * rng.random() * 9)) for f in (220, 330, 551)
    )
    return Sound.of(torch.from_numpy(0.1 * np.stack([tones, tones])).float(), 22_050)


def autoencoder(name: str, folder: Path) -> Codec:
    model = small_model(name, folder)
    return create_codec(
        CodecSettings("autoencoder", model_config=str(model.config), ckpt_path=str(model.weights), device="cpu")
    )


@pytest.fixture(scope="module")
def dac_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DAC as its own package writes it, but tiny."""
    if not available("dac"):
        pytest.skip("descript-audio-codec is not installed")
    import dac

    torch.manual_seed(0)
    model = dac.DAC(4, [2, 4, 4], 16, 8, [4, 4, 2], n_codebooks=3, codebook_size=32, codebook_dim=4, sample_rate=16_000)
    path = tmp_path_factory.mktemp("dac") / "weights.pth"
    model.save(path)
    return path


@pytest.fixture(params=["spectral", "dac", "tiny_autoencoder", "tiny_codec"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    if request.param == "spectral":
        return SpectralCodec()
    if request.param == "dac":
        path = request.getfixturevalue("dac_weights")
        return create_codec(CodecSettings("dac", model_path=str(path), device="cpu"))
    return autoencoder(request.param, tmp_path_factory.mktemp("models"))


def test_counts_are_within_the_codebooks_and_repeatable(codec: Codec) -> None:
    counts = codec.count(sound())
    assert counts.shape == (codec.num_codebooks, codec.codebook_size)
    assert (counts.sum(1) > 0).all()
    assert torch.equal(counts, codec.count(sound()))
    noise = 0.5 * torch.randn((2, 44_100), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(counts, codec.count(Sound.of(noise, 22_050)))


def test_a_file_shorter_than_a_frame_has_codes(codec: Codec) -> None:
    assert codec.count(sound(0.02)).shape == (codec.num_codebooks, codec.codebook_size)


def test_identity_tells_weights_apart(dac_weights: Path, tmp_path: Path) -> None:
    import dac

    one = DACCodec("44khz", str(dac_weights), torch.device("cpu"))
    torch.manual_seed(1)
    dac.DAC(4, [2, 4, 4], 16, 8, [4, 4, 2], n_codebooks=3, codebook_size=32, codebook_dim=4, sample_rate=16_000).save(
        tmp_path / "other.pth"
    )
    other = DACCodec("44khz", str(tmp_path / "other.pth"), torch.device("cpu"))
    assert one.identity == DACCodec("44khz", str(dac_weights), torch.device("cpu")).identity != other.identity


def test_long_files_are_encoded_in_windows_of_the_right_total(dac_weights: Path) -> None:
    codec = DACCodec("44khz", str(dac_weights), torch.device("cpu"))
    assert {len(stream) for stream in codec.codes(sound(21.0))} == {21 * 16_000 // codec.ratio}


def test_latents_in_equal_steps() -> None:
    assert quantize_latents(torch.tensor([-9.0, -3.0, -0.01, 0.0, 2.99, 9.0])).tolist() == [0, 0, 15, 16, 31, 31]


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.pth").write_bytes(b"none")
    with pytest.raises(ConfigError, match=r"--model-path .*absent.pth: no such file"):
        create_codec(CodecSettings("dac", model_path=str(tmp_path / "absent.pth")))
    with pytest.raises(CheckpointError, match="cannot be read as a Descript Audio Codec"):
        create_codec(CodecSettings("dac", model_path=str(tmp_path / "bad.pth"), device="cpu"))
    with pytest.raises(ConfigError, match="give --model-config and --ckpt-path, or --pretrained-name"):
        create_codec(CodecSettings("autoencoder", model_config="a.json"))

    import dac

    def unreachable(**_: Any) -> Path:
        raise OSError("no network")

    monkeypatch.setattr(dac.utils, "download", unreachable)
    with pytest.raises(ConfigError, match=r"cannot be downloaded .no network.; .*--codec spectral"):
        create_codec(CodecSettings("dac"))
