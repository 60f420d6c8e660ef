"""Audio as a condition, with the patched pretransform: exact, and without random draws."""

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.conditioners import PretransformConditioner, SourceMixConditioner
from stable_audio_tools.models.factory import create_pretransform_from_config

PATCHED = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}  # 2 channels of audio to 8, 4 times shorter


@pytest.fixture
def pretransform():
    return create_pretransform_from_config(PATCHED, 16000)


def test_encoded_audio_as_it_is_where_widths_agree(pretransform):
    audio = torch.randn(3, 2, 64)
    tensor, mask = PretransformConditioner(pretransform, 8)(list(audio), "cpu")
    torch.testing.assert_close(tensor, pretransform.encode(audio))
    assert mask.shape == (3, 16) and mask.all()


def test_other_widths_are_projected_on_the_channels(pretransform):
    conditioner = PretransformConditioner(pretransform, 5)
    audio = torch.randn(2, 2, 64)
    wanted = torch.einsum("oc,bct->bot", conditioner.proj_out.weight, pretransform.encode(audio))
    torch.testing.assert_close(conditioner(audio).tensor, wanted + conditioner.proj_out.bias[:, None])
    assert conditioner.state_dict().keys() == {"proj_out.weight", "proj_out.bias"}


def test_channels_are_matched(pretransform):
    conditioner = PretransformConditioner(pretransform, 8)
    mono = torch.randn(1, 64)
    torch.testing.assert_close(conditioner([mono]).tensor, conditioner([mono.expand(2, -1)]).tensor)


def test_clips_of_different_lengths_are_named(pretransform):
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 32\), \(2, 64\)"):
        PretransformConditioner(pretransform, 8)([torch.zeros(2, 64), torch.zeros(2, 32)])


def test_the_pretransform_is_saved_where_asked():
    config = {
        "encoder": {"type": "oobleck", "config": {"channels": 4, "latent_dim": 4, "c_mults": [1], "strides": [2]}},
        "decoder": {"type": "oobleck", "config": {"channels": 4, "latent_dim": 4, "c_mults": [1], "strides": [2]}},
        "latent_dim": 4,
        "downsampling_ratio": 2,
        "io_channels": 2,
    }
    pretransform = create_pretransform_from_config({"type": "autoencoder", "config": config}, 16000)
    assert not PretransformConditioner(pretransform, 4).state_dict()
    saved = PretransformConditioner(pretransform, 4, save_pretransform=True)
    assert all(name.startswith("pretransform.model.") for name in saved.state_dict())
    assert saved([torch.randn(2, 64)]).tensor.requires_grad is False


def test_a_mix_is_the_sum_of_its_projected_sources(pretransform):
    conditioner = SourceMixConditioner(pretransform, 3, source_keys=["drums", "bass", "voice"])
    drums, voice = torch.randn(2, 64), torch.randn(1, 64)
    tensor, mask = conditioner([{"voice": voice, "drums": drums, "lyrics": "none"}, {"drums": drums}])
    encoded = {"drums": pretransform.encode(drums[None]), "voice": pretransform.encode(voice.expand(2, -1)[None])}
    wanted = conditioner.source_heads[0](encoded["drums"]) + conditioner.source_heads[2](encoded["voice"])
    torch.testing.assert_close(tensor[:1], wanted)
    torch.testing.assert_close(tensor[1:], conditioner.source_heads[0](encoded["drums"]))
    assert mask.shape == (2, 16) and mask.all()


def test_published_names_of_a_mix(pretransform):
    mix = SourceMixConditioner(pretransform, 3, source_keys=["a", "b"], allow_null_source=True, source_length=4)
    assert {name: tuple(tensor.shape) for name, tensor in mix.state_dict().items()} == {
        "null_source": (3, 1),
        "proj_out.weight": (3, 8),
        "proj_out.bias": (3,),
        "source_heads.0.weight": (3, 8, 1),
        "source_heads.0.bias": (3,),
        "source_heads.1.weight": (3, 8, 1),
        "source_heads.1.bias": (3,),
    }
    assert not mix.proj_out.weight.requires_grad  # published, and used by nothing


def test_equal_widths_need_no_projection(pretransform):
    mix = SourceMixConditioner(pretransform, 8, source_keys=["a"])
    assert mix([{"a": torch.randn(2, 64)}]).tensor.shape == (1, 8, 16)


def test_no_source_at_all(pretransform):
    options = {"source_keys": ["drums"]}
    with pytest.raises(ValueError, match=r"none of the sources drums is given \(given: voice\)"):
        SourceMixConditioner(pretransform, 3, **options)([{"voice": torch.zeros(2, 64)}])
    mix = SourceMixConditioner(pretransform, 3, **options, allow_null_source=True, source_length=16)
    tensor = mix([{}, {"drums": torch.zeros(2, 64)}]).tensor
    torch.testing.assert_close(tensor[0], mix.null_source.expand(3, 16))


def test_encoded_sources_are_taken_as_they_are(pretransform):
    mix = SourceMixConditioner(pretransform, 3, source_keys=["drums"], pre_encoded=True)
    latents = torch.randn(8, 16)
    torch.testing.assert_close(mix([{"drums": latents}]).tensor, mix.source_heads[0](latents[None]))


def test_wrong_shapes_of_sources(pretransform):
    mix = SourceMixConditioner(pretransform, 3, source_keys=["drums"])
    with pytest.raises(ValueError, match=r"source 'drums' must be shaped \(channels, samples\), got \(64,\)"):
        mix([{"drums": torch.zeros(64)}])
    with pytest.raises(ValueError, match=r"equally long; their latents have \[8, 16\] frames"):
        mix([{"drums": torch.zeros(2, 64)}, {"drums": torch.zeros(2, 32)}])


def test_from_a_config_with_the_models_own_pretransform(pretransform):
    node = {"id": "a", "type": "pretransform", "config": {"sample_rate": 16000, "use_model_pretransform": True}}
    assert build("conditioner", node, cond_dim=8, pretransform=pretransform).pretransform is pretransform
    with pytest.raises(ConfigError, match="the model has no pretransform"):
        build("conditioner", node, cond_dim=8)


def test_from_a_config_with_a_pretransform_of_its_own():
    config = {"sample_rate": 16000, "pretransform_config": PATCHED, "source_keys": ["a"], "output_dim": 5}
    mix = build("conditioner", {"id": "a", "type": "source_mix", "config": config}, cond_dim=8)
    assert mix([{"a": torch.randn(2, 64)}]).tensor.shape == (1, 5, 16)


def test_mistakes_in_a_config():
    node = {"id": "a", "type": "pretransform", "config": {"sample_rate": 16000}}
    with pytest.raises(ConfigError, match="pretransform_config: missing; give one, or set use_model_pretransform"):
        build("conditioner", node, cond_dim=8)
    config = {"sample_rate": 16000, "use_model_pretransform": True, "source_keys": ["a"], "allow_null_source": True}
    with pytest.raises(ConfigError, match="source_length: missing; allow_null_source needs it"):
        build("conditioner", {"id": "a", "type": "source_mix", "config": config}, cond_dim=8)
