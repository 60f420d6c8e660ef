"""CLAP conditioners on small random networks: a checkpoint of laion-clap, and a folder of transformers."""

import pytest
import torch
from support.small_clap import small_clap, tokenizer, write_checkpoint, write_folder
from torch.nn import functional as F

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.models.checkpoints import load_into
from stable_audio_tools.models.conditioners import CLAPAudioConditioner, CLAPTextConditioner
from stable_audio_tools.models.conditioners.clap_towers import audio_tower_of_checkpoint, clap_widths


@pytest.fixture(scope="module")
def clap():
    return small_clap()


@pytest.fixture(scope="module")
def checkpoint(clap, tmp_path_factory):
    return write_checkpoint(clap, tmp_path_factory.mktemp("laion"))


@pytest.fixture(scope="module")
def folder(clap, tmp_path_factory):
    return write_folder(clap, tmp_path_factory.mktemp("clap"))


def with_tokenizer(conditioner):
    conditioner.tokenizer = tokenizer()
    return conditioner


def reference(clap, texts):
    tokens = tokenizer()(texts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        return clap.text_model(tokens.input_ids, tokens.attention_mask, output_hidden_states=True), tokens


# ------------------------------------------------------------------ text


def test_text_of_a_checkpoint_as_one_vector(clap, checkpoint):
    texts = ["a slow piano", "rain", "a slow piano"]
    tensor, mask = with_tokenizer(CLAPTextConditioner(512, checkpoint))(texts, "cpu")
    found, _ = reference(clap, texts)
    with torch.no_grad():
        wanted = F.normalize(clap.text_projection(found.pooler_output), dim=-1)
    torch.testing.assert_close(tensor[:, 0], wanted)
    assert tensor.shape == (3, 1, 512) and mask.all()


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_text_as_the_states_of_a_layer(clap, checkpoint, layer):
    conditioner = CLAPTextConditioner(768, checkpoint, use_text_features=True, feature_layer_ix=layer)
    tensor, mask = with_tokenizer(conditioner)(["a slow piano", "rain"])
    found, tokens = reference(clap, ["a slow piano", "rain"])
    torch.testing.assert_close(tensor, found.hidden_states[layer])
    assert torch.equal(mask, tokens.attention_mask.bool())


def test_text_by_name_is_the_same(checkpoint, folder):
    by_name = CLAPTextConditioner(512, clap_model_name=folder)
    by_file = with_tokenizer(CLAPTextConditioner(512, checkpoint))
    torch.testing.assert_close(by_name(["rain"]).tensor, by_file(["rain"]).tensor)


def test_a_frozen_clap_is_no_part_of_the_model(checkpoint):
    conditioner = with_tokenizer(CLAPTextConditioner(16, checkpoint))
    conditioner(["rain"])
    assert conditioner.state_dict().keys() == {"proj_out.weight", "proj_out.bias"}
    assert CLAPTextConditioner(16, checkpoint).tower() is conditioner.tower()


def test_a_trained_clap_has_the_names_of_laion_clap(checkpoint):
    conditioner = with_tokenizer(CLAPTextConditioner(16, checkpoint, finetune=True))
    names = set(conditioner.state_dict())
    assert {"model.model.text_branch.embeddings.word_embeddings.weight", "model.model.text_projection.2.bias"} <= names
    assert not any(name.endswith(("position_ids", "token_type_ids")) for name in names)
    conditioner(["rain"]).tensor.sum().backward()
    assert conditioner.model["model"].text_projection[0].weight.grad.abs().sum() > 0


def test_files_of_a_trained_clap_may_hold_more(checkpoint):
    conditioner = torch.nn.ModuleDict({"prompt": CLAPTextConditioner(16, checkpoint, finetune=True)})
    state = dict(conditioner.state_dict())
    state["prompt.model.model.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    for rest in ("logit_scale_a", "audio_projection.0.weight", "text_transform.sequential.0.weight"):
        state[f"prompt.model.model.{rest}"] = torch.zeros(2)
    assert load_into(conditioner, state).upgrades == {"constants_not_in_model": 1, "clap_parts_not_in_model": 3}


# ------------------------------------------------------------------ audio


@pytest.mark.parametrize("seconds", [2, 10])
def test_audio_of_a_checkpoint(clap, checkpoint, seconds):
    from transformers import ClapFeatureExtractor

    audio = 0.1 * torch.randn(2, 2, 48000 * seconds)
    tensor, mask = CLAPAudioConditioner(512, checkpoint)(list(audio), "cpu")
    features = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)
    mels = features(list(audio.mean(1).numpy()), sampling_rate=48000, return_tensors="pt").input_features
    with torch.no_grad():
        pooled = clap.audio_model(mels.float()).pooler_output
        wanted = F.normalize(clap.audio_projection(pooled), dim=-1)
    torch.testing.assert_close(tensor[:, 0], wanted)
    assert mask.all() and (tensor[0] - tensor[1]).abs().max() > 1e-5


def test_audio_is_resampled(checkpoint):
    conditioner, seen = CLAPAudioConditioner(512, checkpoint, sample_rate=16000), []
    handle = conditioner.tower().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    conditioner([torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)[None]])
    handle.remove()
    wanted = torch.sin(2 * torch.pi * 440 * torch.arange(48000) / 48000)
    middle = slice(1000, -1000)  # away from the ends, where the resampling filter reaches over the edge
    torch.testing.assert_close(seen[0][0, middle], wanted[middle], atol=2e-3, rtol=0)


def test_audio_by_name_is_the_same(checkpoint, folder):
    audio = [0.1 * torch.randn(1, 48000)]
    by_name, by_file = CLAPAudioConditioner(512, clap_model_name=folder), CLAPAudioConditioner(512, checkpoint)
    torch.testing.assert_close(by_name(audio).tensor, by_file(audio).tensor)


def test_a_trained_audio_clap_gets_gradients(checkpoint):
    conditioner = CLAPAudioConditioner(16, checkpoint, finetune=True)
    conditioner([0.1 * torch.randn(1, 48000)]).tensor.sum().backward()
    gradients = [parameter.grad for parameter in conditioner.model["model"].clap.audio_projection.parameters()]
    assert all(gradient is not None for gradient in gradients)


# ------------------------------------------------------------------ mistakes


def test_widths_without_loading(folder):
    assert clap_widths("laion/clap-htsat-fused", "clap_model_name") == (768, 512)
    assert clap_widths("laion/larger_clap_music_and_speech", "clap_model_name") == (768, 512)
    assert clap_widths(folder, "clap_model_name") == (768, 512)
    with torch.device("meta"):  # the file need not be there to build
        assert CLAPTextConditioner(512, "absent.pt").state_dict() == {}


def test_one_source_is_needed():
    with pytest.raises(ConfigError, match="clap_ckpt_path: give one of clap_ckpt_path"):
        build("conditioner", {"id": "a", "type": "clap_text", "config": {}}, cond_dim=4)


def test_files_that_are_no_clap(tmp_path, checkpoint):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no text_branch in it; this is not a checkpoint of laion-clap"):
        with_tokenizer(CLAPTextConditioner(512, str(tmp_path / "other.pt")))(["rain"])
    stored = torch.load(checkpoint, weights_only=True)
    del stored["state_dict"]["module.audio_branch.norm.weight"]
    torch.save(stored, tmp_path / "partial.pt")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*audio_model.audio_encoder.norm.weight"):
        audio_tower_of_checkpoint(str(tmp_path / "partial.pt"))
