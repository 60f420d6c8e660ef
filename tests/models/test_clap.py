"""CLAP over latents: vectors, masks, noise levels, names, and the conditioners that use a trained one."""

from pathlib import Path

import pytest
import torch
from support.small_clap_model import clap_config, write_roberta

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.inference.generation.facts import facts_of
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.clap import CLAP, LatentTransformerCLAPAudioBranch, create_clap_from_config
from stable_audio_tools.models.pretransforms import PatchedPretransform


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_roberta(tmp_path_factory.mktemp("roberta"))


def test_both_halves_give_vectors_of_length_one(roberta):
    model = create_model_from_config(clap_config(roberta))
    assert isinstance(model, CLAP)
    audio = model.get_audio_embedding(model.get_audio_features(torch.randn(2, 2, 2048)))
    text = model.get_text_embedding(["a slow piano", "fast drum loop with rain and more words than fit"])
    for vectors in (audio, text):
        assert vectors.shape == (2, 24)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert not torch.allclose(text[0], text[1])


@pytest.mark.parametrize("pooling", ["cls_prepend", "avg_pool"])
def test_padding_changes_nothing(pooling):
    torch.manual_seed(0)
    branch = LatentTransformerCLAPAudioBranch(32, pooling, depth=2, dim_in=8, dim_heads=16, num_memory_tokens=2).eval()
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    latents = torch.randn(1, 8, 10)
    padded = torch.cat([latents, 9 * torch.randn(1, 8, 6)], dim=2)
    mask = torch.arange(16)[None] < 10
    alone = branch(latents)["embedding"]
    torch.testing.assert_close(branch(padded, mask=mask)["embedding"], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(branch(padded, padding_mask=mask)["embedding"], alone, atol=1e-5, rtol=1e-4)
    assert len(branch(latents, return_hidden_states=True)["hidden_states"]) == 2


def test_noise_levels_condition_the_audio_half():
    torch.manual_seed(0)
    branch = LatentTransformerCLAPAudioBranch(32, noise_config={"embed_dim": 8}, depth=1, dim_in=8, dim_heads=16)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    latents = torch.randn(2, 8, 10)
    clean = branch(latents)["embedding"]
    assert torch.equal(clean, branch(latents, noise_levels=torch.zeros(2))["embedding"])
    assert not torch.allclose(clean, branch(latents, noise_levels=torch.ones(2))["embedding"])


def test_a_given_pretransform_replaces_that_of_the_config(roberta):
    bank = PatchedPretransform(2, 32)
    assert create_clap_from_config(clap_config(roberta), pretransform=bank).pretransform is bank
    without = clap_config(roberta)
    del without["model"]["pretransform"]
    with pytest.raises(ValueError, match="has no pretransform: give it latents"):
        create_clap_from_config(without).get_audio_features(torch.randn(1, 2, 64))


def test_it_generates_nothing_and_names_mistakes(roberta, tmp_path):
    with pytest.raises(UserError, match="'clap' generates nothing"):
        facts_of(clap_config(roberta))
    with pytest.raises(UserError, match=r"text\.model\.config\.name"):
        create_model_from_config(clap_config(str(tmp_path)))
    wrong = clap_config(roberta)
    wrong["model"]["audio"]["model"]["config"]["depht"] = 2
    with pytest.raises(ConfigError, match="depht"):
        create_model_from_config(wrong)


def condition(tag: str, roberta: str, **config):
    node = {"id": "prompt", "type": tag, "config": {"model": clap_config(roberta)["model"], **config}}
    return build("conditioner", node, "", cond_dim=12)


def test_conditioners_use_a_trained_clap(roberta, tmp_path: Path):
    trained = create_model_from_config(clap_config(roberta))
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "clap.ckpt")
    texts = ["a slow piano", "rain"]
    text = condition("sat_clap_text", roberta, ckpt_path=str(tmp_path / "clap.ckpt"), output_dim=24)
    tensor, mask = text(texts)
    torch.testing.assert_close(tensor[:, 0], trained.get_text_embedding(texts))
    assert mask.all() and not any(name.startswith("model.audio_branch") for name in text.state_dict())
    assert not any(parameter.requires_grad for parameter in text.model.parameters())
    tokens, mask = condition("sat_clap_text", roberta, use_text_features=True)(texts)
    assert tokens.shape == (2, 8, 12) and mask.sum(1).tolist() == [5, 3]
    audio = condition("sat_clap_audio", roberta, ckpt_path=str(tmp_path / "clap.ckpt"), output_dim=24)
    latents = torch.randn(2, 64, 10)
    torch.testing.assert_close(audio(list(latents))[0][:, 0], trained.get_audio_embedding(latents))
    with pytest.raises(ConfigError, match="joint_embed_dim"):
        build("conditioner", {"id": "p", "type": "sat_clap_text", "config": {"model": {}}}, "", cond_dim=12)
