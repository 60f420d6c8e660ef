import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import build, validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.latents.identity import LatentEncoder, autoencoder_of, identify, require_same_autoencoder
from stable_audio_tools.mel import pretransform as module

RATE = 16000
SMALL = {"n_fft": 256, "hop_length": 64, "n_mels": 16}


def made(**config: Any) -> Any:
    return build("pretransform", {"type": "mel", "config": {**SMALL, **config}}, sample_rate=RATE)


@pytest.mark.parametrize("variant", ["bigvgan", "db_image"])
def test_bands_are_channels_and_frames_are_time(variant: str) -> None:
    pretransform = made(variant=variant, channels=2)
    audio = torch.randn(3, 2, 64 * 9 + 63) * 0.1
    mel = pretransform.encode(audio)
    assert mel.shape == (3, 32, 9)
    assert pretransform.decode(mel).shape == (3, 2, 64 * 9)
    assert (pretransform.io_channels, pretransform.encoded_channels, pretransform.downsampling_ratio) == (2, 32, 64)
    # The first bands are those of the first channel.
    silent = pretransform.encode(torch.cat([audio[:, :1], torch.zeros_like(audio[:, :1])], 1))
    assert torch.equal(silent[:, :16], mel[:, :16])
    assert (silent[:, 16:] == -1).all()


def test_its_facts_are_known_without_building_it() -> None:
    part = validate("pretransform", {"type": "mel", "config": {**SMALL, "channels": 2}})
    assert part.facts == {"io_channels": 2, "encoded_channels": 32, "is_discrete": False, "downsampling_ratio": 64}


def test_precision_is_that_of_the_input_also_under_autocast() -> None:
    pretransform, audio = made(), torch.randn(1, 1, 1024) * 0.1
    mel = pretransform.encode(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pretransform.encode(audio), mel)
        assert torch.equal(pretransform.decode(mel), pretransform.decode(mel))
    assert pretransform.encode(audio.bfloat16()).dtype == torch.bfloat16
    assert pretransform.decode(mel.bfloat16()).dtype == torch.bfloat16


def test_gradients_pass_through_both_ways() -> None:
    pretransform = made(vocoder={"type": "griffin_lim", "config": {"n_iter": 1}})
    audio = (torch.randn(1, 1, 1024) * 0.1).requires_grad_()
    pretransform.encode(audio).sum().backward()
    mel = torch.zeros(1, 16, 8, requires_grad=True)
    pretransform.decode(mel).square().sum().backward()
    for tensor in (audio, mel):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hop_length": 300}, "hop_length: is 300, longer than n_fft"),
        ({"win_length": 300}, "win_length: is 300, longer than n_fft"),
        ({"fmin": 400, "fmax": 300}, "fmax: is 300, not above fmin"),
        ({"range": [2, 1]}, r"range: is \[2.0, 1.0\]; the first number is the lower"),
        ({"range": [2]}, "range: .*at least 2"),
        ({"top_db": 80}, "top_db: has no meaning for the variant 'bigvgan'"),
        ({"variant": "db_image", "range": [-11, 2]}, "range: has no meaning for the variant 'db_image'"),
        ({"variant": "db_image", "ref": "loudest"}, "ref"),
        ({"variant": "db_image", "ref": 0}, "ref: is 0; a power is above 0"),
        ({"fmax": 9000}, "fmax is 9000, above half the sample rate"),
        ({"fmin": 8000}, "fmin is 8000, not below half the sample rate"),
        ({"fmin": 9000, "variant": "db_image"}, "fmin is 9000, not below half the sample rate"),
        ({"vocoder": {"type": "wavenet"}}, "no vocoder named 'wavenet'"),
        ({"vocoder": {"type": "griffin_lim", "config": {"momentum": 1}}}, "momentum"),
        ({"sample_rate": 16000}, "sample_rate: unknown key"),
    ],
)
def test_mistakes_are_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**config)


def chain(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "chain", "config": {"stages": list(stages)}}


MEL = {"type": "mel", "config": SMALL}
PATCHES = {"type": "patched", "config": {"channels": 16, "patch_size": 2}}


def test_a_chain_is_its_stages_in_order() -> None:
    whole = build("pretransform", chain(MEL, PATCHES), sample_rate=RATE)
    mel, patches = (build("pretransform", node, sample_rate=RATE) for node in (MEL, PATCHES))
    audio = torch.randn(2, 1, 64 * 8) * 0.1
    latents: Tensor = whole.encode(audio)
    assert torch.equal(latents, patches.encode(mel.encode(audio)))
    assert torch.equal(whole.decode(latents), mel.decode(patches.decode(latents)))
    assert latents.shape == (2, whole.encoded_channels, 8 // 2)
    assert whole.downsampling_ratio == 128
    part = validate("pretransform", chain(MEL, PATCHES))
    assert part.facts == {"io_channels": 1, "encoded_channels": 32, "is_discrete": False, "downsampling_ratio": 128}


def test_channels_of_a_chain_must_fit() -> None:
    wide = {"type": "patched", "config": {"channels": 8, "patch_size": 2}}
    with pytest.raises(ConfigError, match=r"stages\[1\]: takes 8 channels, but stages\[0\] delivers 16: use 16"):
        build("pretransform", chain(MEL, wide), sample_rate=RATE)
    with pytest.raises(ConfigError, match=r"stages\[0\]: .* outputs tokens, .* put it last"):
        validate("pretransform", chain({"type": "dac_pretrained"}, wide))
    with pytest.raises(ConfigError, match=r"stages: .*at least 1"):
        validate("pretransform", chain())
    with pytest.raises(ConfigError, match=r"stages\[1\]\.config\.patch_size"):
        validate("pretransform", chain(MEL, {"type": "patched", "config": {"channels": 16, "patch_size": 0}}))


AUTOENCODER = {
    "type": "autoencoder",
    "config": {
        "encoder": {"type": "oobleck", "config": {"in_channels": 16, "channels": 8, "c_mults": [1], "strides": [2]}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 16, "channels": 8, "c_mults": [1], "strides": [2]}},
        "latent_dim": 4,
        "downsampling_ratio": 2,
        "io_channels": 16,
    },
}
for _half in ("encoder", "decoder"):
    AUTOENCODER["config"][_half]["config"]["latent_dim"] = 4  # type: ignore[index]


def test_the_autoencoder_of_a_chain_takes_weights_of_its_own() -> None:
    whole = build("pretransform", chain(MEL, AUTOENCODER), sample_rate=RATE)
    assert whole.model is whole.stages[1].model
    assert all(name.startswith("stages.1.model.") for name in whole.state_dict())
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    assert whole.encode(torch.randn(1, 1, 64 * 8)).shape == (1, 4, 4)
    assert not hasattr(build("pretransform", chain(MEL, PATCHES), sample_rate=RATE), "model")


def holding(node: dict[str, Any]) -> nn.Module:
    model = nn.Module()
    model.pretransform = build("pretransform", node, sample_rate=RATE)
    return model


def test_the_autoencoder_of_a_chain_encodes_audio_through_all_its_stages() -> None:
    """Pre-encoding takes it, and its latents are those of the chain, unscaled."""
    scaled = {**AUTOENCODER, "scale": 2.0}
    model = holding(chain(MEL, chain(scaled)))
    found = autoencoder_of(model)
    audio = torch.randn(2, 1, 64 * 8) * 0.1
    assert (found.audio_channels, found.downsampling_ratio) == (1, 128)
    torch.testing.assert_close(found.encode_audio(audio), model.pretransform.encode(audio) * 2)
    torch.testing.assert_close(LatentEncoder(found)(audio), found.encode_audio(audio))
    assert found.encoder is model.pretransform.stages[1].stages[0].model.encoder
    alone = holding(chain({**AUTOENCODER, "scale": 2.0}))
    assert autoencoder_of(alone) is alone.pretransform.model


def test_what_an_autoencoder_of_a_chain_has_before_itself_stays() -> None:
    inner = copy.deepcopy(AUTOENCODER)
    inner["config"] |= {"pretransform": PATCHES, "downsampling_ratio": 4, "io_channels": 16}
    for half, key in (("encoder", "in_channels"), ("decoder", "out_channels")):
        inner["config"][half]["config"][key] = 32
    inner["config"] |= {"in_channels": 32, "out_channels": 32}
    model = holding(chain(MEL, inner))
    audio = torch.randn(1, 1, 64 * 8) * 0.1
    torch.testing.assert_close(autoencoder_of(model).encode(audio), model.pretransform.encode(audio))


def test_only_a_chain_that_ends_in_an_autoencoder_encodes() -> None:
    with pytest.raises(
        ConfigError, match="the last stage of the chain is PatchedPretransform, not an autoencoder; only"
    ):
        autoencoder_of(holding(chain(MEL, PATCHES)))
    with pytest.raises(ConfigError, match="is not an autoencoder, and its pretransform is not one either"):
        autoencoder_of(holding(MEL))


def test_the_scale_of_a_chain_is_that_of_its_last_stage_that_has_one() -> None:
    assert build("pretransform", chain(MEL, PATCHES), sample_rate=RATE).scale == 1
    patches = {"type": "patched", "config": {"channels": 4, "patch_size": 2}}
    scaled = {**AUTOENCODER, "scale": 2.0}
    assert build("pretransform", chain(MEL, chain(scaled), patches), sample_rate=RATE).scale == 2
    unmeasured = build("pretransform", chain(MEL, {**AUTOENCODER, "scale": "auto"}), sample_rate=RATE)
    with pytest.raises(ValueError, match="the scale of the latents is 'auto' and not measured yet"):
        _ = unmeasured.scale


def latents_of(folder: Path, **details: Any) -> dict[str, Any]:
    """A dataset of latents, with what its details tell."""
    (folder / "details.json").write_text(json.dumps({"sample_rate": RATE, **details}))
    return {"dataset_type": "pre_encoded", "datasets": [{"id": "latents", "path": str(folder)}]}


def test_latents_of_another_kind_of_transform_are_refused(tmp_path: Path) -> None:
    bands = latents_of(tmp_path, pretransform=MEL)
    with pytest.raises(ConfigError, match=r"\(they come from 'mel', not from an autoencoder\); cut the audio again"):
        require_same_autoencoder(holding(AUTOENCODER), bands)
    with pytest.raises(ConfigError, match="from 'mel' alone, which is one of 2 stages"):
        require_same_autoencoder(holding(chain(MEL, AUTOENCODER)), bands)
    require_same_autoencoder(holding(MEL), bands)
    require_same_autoencoder(holding(AUTOENCODER), latents_of(tmp_path))


def test_latents_of_an_autoencoder_are_refused_by_bands_and_compared_with_a_chain(tmp_path: Path) -> None:
    model = holding(chain(MEL, AUTOENCODER))
    made = latents_of(tmp_path, autoencoder=identify(autoencoder_of(model))._asdict())
    require_same_autoencoder(model, made)
    with pytest.raises(ConfigError, match="they come from 'autoencoder'"):
        require_same_autoencoder(holding(MEL), made)
    with pytest.raises(ConfigError, match="encoded by another autoencoder than the pretransform of this model"):
        require_same_autoencoder(holding(chain(MEL, AUTOENCODER)), made)


def test_the_example_of_the_module_is_a_config() -> None:
    example = str(module.__doc__).split("\n\n")[1]
    assert build("pretransform", json.loads(example), sample_rate=44100).io_channels == 1
