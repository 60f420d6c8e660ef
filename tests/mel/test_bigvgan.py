"""BigVGAN against diffusers' vocoder (version 2) and figures of the package `bigvgan` 2.4.1 (both versions)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.mel.bigvgan import PUBLISHED, BigVGAN, BigVGANConfig, load_bigvgan, read_config
from stable_audio_tools.models.checkpoints import load_into

COUNTS = {  # millions of parameters
    "bigvgan_v2_44khz_128band_512x": 122.2,
    "bigvgan_v2_44khz_128band_256x": 112.7,
    "bigvgan_v2_24khz_100band_256x": 112.4,
    "bigvgan_v2_22khz_80band_256x": 112.2,
    "bigvgan_v2_22khz_80band_fmax8k_256x": 112.2,
    "bigvgan_24khz_100band": 112.4,
    "bigvgan_22khz_80band": 112.2,
    "bigvgan_base_24khz_100band": 14.0,
    "bigvgan_base_22khz_80band": 13.9,
}
SMALL = {
    "sampling_rate": 16000,
    "num_mels": 8,
    "n_fft": 64,
    "hop_size": 16,
    "win_size": 64,
    "fmin": 0,
    "fmax": None,
    "upsample_rates": [4, 4],
    "upsample_kernel_sizes": [8, 8],
    "upsample_initial_channel": 16,
    "resblock": "1",
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
    "learning_rate": 1e-4,  # a key of training alone
}
VERSIONS: dict[str, dict[str, Any]] = {
    "v2": {},
    "v1": {"use_tanh_at_final": True, "use_bias_at_final": True},
    "v1-snake": {"use_tanh_at_final": True, "use_bias_at_final": True, "activation": "snake", "snake_logscale": False},
    "block-2": {"resblock": "2"},
}


def small(**changes: Any) -> BigVGANConfig:
    return BigVGANConfig.parse({**SMALL, **changes}, "config.json")


def waves(shape: torch.Size, offset: int, size: float) -> Tensor:
    """Values that need no random generator, the same everywhere."""
    places = torch.arange(shape.numel(), dtype=torch.float64) + offset
    return (size * torch.sin(places * 1.7 + places**2 * 0.013)).float().reshape(shape)


def weight_normed(network: BigVGAN) -> dict[str, Tensor]:
    """A state dict as published files hold it: gain and direction for each convolution."""
    state = {}
    for number, (name, tensor) in enumerate(network.state_dict().items()):
        if name.endswith(".filter"):
            state[name] = tensor
        elif name.endswith(".weight"):
            state[f"{name}_v"] = waves(tensor.shape, 31 * number, 1.0)
            state[f"{name}_g"] = 0.4 + waves(torch.Size([tensor.shape[0], 1, 1]), number, 0.1)
        else:
            state[name] = waves(tensor.shape, 17 * number, 0.2)
    return state


def output(network: BigVGAN) -> Tensor:
    with torch.no_grad():
        return network(waves(torch.Size([2, network.config.num_mels, 9]), 5, 2.0))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_their_published_sizes(name: str) -> None:
    with torch.device("meta"):
        network = BigVGAN(PUBLISHED[name])
        made = network(torch.zeros(1, PUBLISHED[name].num_mels, 3))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(COUNTS[name], abs=0.06)
    assert made.shape == (1, 1, 3 * PUBLISHED[name].hop_size)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "_v2_" in name and "22khz" not in name])
def test_version_2_is_diffusers_vocoder(name: str) -> None:
    """Narrow copies of the published layouts, with the same random weights."""
    from diffusers.models.autoencoders.mmaudio_vocoder import MMAudioVocoder

    config = PUBLISHED[name].model_copy(update={"upsample_initial_channel": 64})
    torch.manual_seed(0)
    theirs = MMAudioVocoder(
        num_mels=config.num_mels,
        upsample_rates=config.upsample_rates,
        upsample_kernel_sizes=config.upsample_kernel_sizes,
        upsample_initial_channel=64,
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = BigVGAN(config).eval()
    ours.load_state_dict(theirs.state_dict())
    mel = torch.randn(2, config.num_mels, 12)
    with torch.no_grad():
        wanted, made = theirs(mel).sample, ours(mel)
    assert wanted.abs().max() > 0.01
    assert torch.allclose(made, wanted.reshape(made.shape), atol=1e-5)


# Seven samples of `output` with the weights of `weight_normed`, from the package `bigvgan` 2.4.1 on torch 2.11.
RECORDED = {
    "v2": [-0.091834, -0.095275, -0.068201, -0.11912, -0.071824, -0.091224, -0.09328],
    "v1": [-0.056123, -0.059553, -0.032538, -0.083275, -0.036157, -0.055515, -0.057564],
    "v1-snake": [0.210783, 0.191146, 0.202094, 0.136463, 0.152258, 0.13734, 0.185034],
    "block-2": [-0.025584, 0.0217, 0.01382, 0.032146, -0.015638, 0.01928, -0.000531],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_both_versions_give_the_published_codes_output(version: str) -> None:
    network = BigVGAN(small(**VERSIONS[version])).eval()
    load_into(network, weight_normed(network))
    samples = output(network)[:, 0, ::24].flatten()[[0, 1, 2, 3, 7, 9, 11]]
    assert torch.allclose(samples, torch.tensor(RECORDED[version]), atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_package_bigvgan_agrees(version: str) -> None:
    """The figures above come from here; the package needs a compiler to install and is no development requirement."""
    theirs_module = pytest.importorskip("bigvgan.bigvgan")
    environment = pytest.importorskip("bigvgan.env")
    theirs = theirs_module.BigVGAN(environment.AttrDict({**SMALL, **VERSIONS[version]})).eval()
    ours = BigVGAN(small(**VERSIONS[version])).eval()
    state = weight_normed(ours)
    theirs.load_state_dict(state)
    load_into(ours, state)
    with torch.no_grad():
        wanted = theirs(waves(torch.Size([2, 8, 9]), 5, 2.0))
    assert torch.allclose(output(ours), wanted, atol=1e-5)
    samples = wanted[:, 0, ::24].flatten()[[0, 1, 2, 3, 7, 9, 11]]
    assert torch.allclose(samples, torch.tensor(RECORDED[version]), atol=1e-5), samples.tolist()


def saved(folder: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save({"generator": state}, folder / "bigvgan_generator.pt")
    (folder / "config.json").write_text(json.dumps(config or SMALL))
    return folder


def test_a_file_a_folder_and_plain_weights_are_the_same(tmp_path: Path) -> None:
    network = BigVGAN(small()).eval()
    state = weight_normed(network)
    load_into(network, state)
    folder = saved(tmp_path / "normed", state)
    plain = saved(tmp_path / "plain", network.state_dict())
    elsewhere = tmp_path / "other.json"
    (plain / "config.json").rename(elsewhere)
    wanted = output(network)
    for loaded in (
        load_bigvgan(folder),
        load_bigvgan(folder / "bigvgan_generator.pt"),
        load_bigvgan(plain, config_path=elsewhere),
    ):
        assert torch.equal(output(loaded), wanted)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights.pt: no such file or folder"):
        load_bigvgan(tmp_path / "weights.pt")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"config.json: no such file"):
        load_bigvgan(empty)
    (empty / "config.json").write_text(json.dumps(SMALL))
    with pytest.raises(CheckpointError, match=r"expected bigvgan_generator.pt, or one other weight file; found none"):
        load_bigvgan(empty)
    torch.save({"mpd": {}, "mrd": {}, "steps": 3}, empty / "bigvgan_generator.pt")
    with pytest.raises(CheckpointError, match="no weights were found"):
        load_bigvgan(empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mels": "many"}, "config.json.num_mels"),
        ({"hop_size": 8}, "upsample_rates multiply to 16, hop_size is 8"),
        ({"upsample_kernel_sizes": [8]}, "as many entries as upsample_rates$"),
        ({"resblock_kernel_sizes": [3]}, "as many entries as resblock_kernel_sizes$"),
        ({"activation": "relu"}, "snake"),
        ({"upsample_rates": [-4, -4]}, r"config.json.upsample_rates\[0\]: expected more than 0"),
        ({"resblock_dilation_sizes": [[1, 0], [1, 3]]}, r"resblock_dilation_sizes\[0\]\[1\]: expected more than 0"),
        (
            {"upsample_rates": [], "upsample_kernel_sizes": [], "hop_size": 1},
            "upsample_rates and resblock_kernel_sizes need at least one entry",
        ),
        ({"upsample_kernel_sizes": [8, 3]}, "an entry of upsample_kernel_sizes is below that of upsample_rates"),
        ({"sampling_rate": 0}, "config.json.sampling_rate: expected more than 0"),
    ],
)
def test_a_wrong_config_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**change)


def test_names_are_found_without_the_network() -> None:
    for name, config in PUBLISHED.items():
        assert read_config(name) == config
        assert read_config(f"nvidia/{name}") == config
    assert read_config("someone/else") is None


def mel_node(source: str, **changes: Any) -> dict[str, Any]:
    config = {"n_fft": 64, "hop_length": 16, "n_mels": 8, "vocoder": {"type": "bigvgan", "config": {"source": source}}}
    return {"type": "mel", "config": {**config, **changes}}


def test_the_vocoder_is_loaded_when_first_used(tmp_path: Path) -> None:
    network = BigVGAN(small()).eval()
    state = weight_normed(network)
    load_into(network, state)
    folder = saved(tmp_path / "vocoder", state)
    pretransform = build("pretransform", mel_node(str(folder)), sample_rate=16000)
    assert pretransform.vocoder._network is None
    assert not pretransform.state_dict()
    mel = torch.rand(2, 8, 9) * 2 - 1
    with torch.no_grad():
        wanted = network(pretransform.transform.to_log(mel))
        assert torch.equal(pretransform.decode(mel), wanted)
    assert not pretransform.state_dict(), "112 million parameters do not belong into every checkpoint"


def test_bands_that_the_vocoder_does_not_know_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"trained on other bands: sample_rate is 48000, not 44100, n_mels is 8, not 128"
    ):
        build("pretransform", mel_node("bigvgan_v2_44khz_128band_256x"), sample_rate=48000)
    with pytest.raises(ConfigError, match="set the variant to 'bigvgan'"):
        build("pretransform", mel_node("bigvgan_v2_44khz_128band_256x", variant="db_image"), sample_rate=44100)


def test_missing_weights_are_told_when_the_model_is_built(tmp_path: Path) -> None:
    folder = tmp_path / "vocoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    for source, message in (
        (folder, "expected bigvgan_generator.pt, or one other weight file; found none"),
        (folder / "typo.pt", r"typo.pt: no such file or folder"),
        ("voc_typo/bigvgan_generator.pt", r"voc_typo/bigvgan_generator.pt: no such file or folder"),
        (tmp_path / "typo", r"typo: no such file or folder"),
    ):
        with pytest.raises(ConfigError, match=f"pretransform.vocoder: .*{message}"):
            build("pretransform", mel_node(str(source)), sample_rate=16000)
    published = {"n_fft": 1024, "hop_length": 256, "n_mels": 128}
    for source in ("bigvgan_v2_44khz_128band_256x", "nvidia/bigvgan_v2_44khz_128band_256x", "someone/else"):
        build("pretransform", mel_node(source, **published), sample_rate=44100)
