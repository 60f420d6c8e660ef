"""Text conditioners, with a tiny random T5 and its tokenizer made here: no download."""

import copy
import json
import pickle

import pytest
import torch
from support.small_t5 import WORDS, write_t5
from torch import nn
from torch.nn import functional as F

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.models.checkpoints import parameters_on_meta
from stable_audio_tools.models.conditioners import (
    MultiConditioner,
    PhonemeConditioner,
    T5Conditioner,
    TokenizerLUTConditioner,
)
from stable_audio_tools.models.conditioners.text import encoder_width

PROMPTS = ["a slow piano", "fast drum loop with rain", "a slow piano"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def padded_to_the_end(conditioner, texts):
    """What transformers makes of the texts when all of them are padded to max_length."""
    tokens = conditioner.tokenizer(
        texts, truncation=True, max_length=conditioner.max_length, padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        hidden = conditioner.encoder()(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    mask = tokens.attention_mask.bool()
    return conditioner.proj_out(hidden) * mask[..., None], mask


# ------------------------------------------------------------------ t5


@pytest.mark.parametrize("options", [{}, {"output_dim": 16, "project_out": True}, {"output_dim": 5}], ids=str)
def test_t5_pads_to_the_longest_and_then_with_zeros(folder, options):
    conditioner = T5Conditioner(**{"output_dim": 16, **options}, t5_model_name=folder, max_length=9)
    tensor, mask = conditioner(PROMPTS, "cpu")
    wanted, wanted_mask = padded_to_the_end(conditioner, PROMPTS)
    assert tensor.shape == (3, 9, conditioner.output_dim) and mask.dtype == torch.bool
    assert torch.equal(mask, wanted_mask)
    torch.testing.assert_close(tensor, wanted)  # shorter batches sum in another order: float32 rounding
    assert not tensor[~mask].any()


def test_t5_cuts_long_texts(folder):
    conditioner = T5Conditioner(16, folder, max_length=4)
    tensor, mask = conditioner([" ".join(WORDS)])
    assert tensor.shape == (1, 4, 16) and mask.all()


def test_t5_encodes_a_text_once_per_call(folder):
    conditioner = T5Conditioner(16, folder, max_length=9)
    sizes = []
    handle = conditioner.encoder().register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tensor, _ = conditioner([*PROMPTS, "rain", "a slow piano"])
    handle.remove()
    assert sizes == [3]
    assert torch.equal(tensor[0], tensor[2]) and torch.equal(tensor[0], tensor[4])


def test_t5_says_something_about_an_empty_text(folder):
    tensor, mask = T5Conditioner(16, folder, max_length=4)(["", "rain"])
    assert mask.tolist() == [[True, False, False, False], [True, True, False, False]]
    assert tensor.isfinite().all()


def test_a_frozen_t5_is_no_part_of_the_model(folder):
    conditioner = T5Conditioner(5, folder)
    conditioner(["rain"], "cpu")
    assert conditioner.state_dict().keys() == {"proj_out.weight", "proj_out.bias"}
    assert not any(parameter.requires_grad for parameter in conditioner.encoder().parameters())
    assert not conditioner.encoder().training


def test_a_frozen_t5_is_loaded_once_for_all_copies(folder):
    first, second = T5Conditioner(16, folder), T5Conditioner(5, folder)
    assert first.encoder() is second.encoder() is copy.deepcopy(second).encoder()
    again = pickle.loads(pickle.dumps(second))
    torch.testing.assert_close(again(["rain"]).tensor, second(["rain"]).tensor)


def test_a_frozen_t5_still_trains_its_projection(folder):
    conditioner = T5Conditioner(5, folder)
    conditioner(PROMPTS).tensor.sum().backward()
    assert conditioner.proj_out.weight.grad.abs().sum() > 0


def test_a_trained_t5_is_in_the_state_dict_under_its_published_names(folder):
    conditioner = T5Conditioner(16, folder, enable_grad=True)
    names = set(conditioner.state_dict())
    assert "model.shared.weight" in names and "model.encoder.block.0.layer.0.SelfAttention.q.weight" in names
    conditioner(PROMPTS).tensor.square().sum().backward()
    assert conditioner.model.shared.weight.grad.abs().sum() > 0
    assert conditioner.model.shared.weight.dtype == torch.float32


def test_a_trained_t5_is_built_empty_where_a_file_will_fill_it(folder):
    full = T5Conditioner(5, folder, enable_grad=True)
    with parameters_on_meta():
        empty = T5Conditioner(5, folder, enable_grad=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in full.state_dict().items()
    }


def test_half_precision_models_take_t5(folder):
    tensor, _ = T5Conditioner(5, folder, max_length=8).half()(["rain"])
    assert tensor.dtype == torch.float16 and tensor.isfinite().all()


def test_widths_that_need_no_download(offline):
    assert encoder_width("t5-base") == 768 and encoder_width("google/flan-t5-xl") == 2048
    with torch.device("meta"):
        conditioner = T5Conditioner(768, "t5-base")
    assert isinstance(conditioner.proj_out, nn.Identity)


def test_the_width_of_a_folder_is_read_from_its_config(folder):
    assert encoder_width(folder) == 16


def test_what_cannot_be_read_says_how_to_work_offline(offline):
    conditioner = T5Conditioner(768, "t5-base")
    with pytest.raises(UserError, match=r"t5_model_name: cannot read 't5-base'.*hf download t5-base.*HF_HUB_OFFLINE"):
        conditioner(["rain"])
    with pytest.raises(UserError, match=r"cannot read 'someone/their-t5'"):
        T5Conditioner(768, "someone/their-t5")


def test_folders_that_are_no_t5(folder, tmp_path):
    node = {"id": "a", "type": "t5", "config": {"t5_model_name": "./no/such/folder"}}
    with pytest.raises(ConfigError, match=r"t5_model_name: no folder './no/such/folder'"):
        build("conditioner", node, cond_dim=4)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 4}))
    with pytest.raises(ConfigError, match="is a 'bert' model, which is not of the T5 family"):
        T5Conditioner(4, str(tmp_path))


def test_a_folder_without_a_tokenizer_is_no_empty_tokenizer(folder, tmp_path):
    """transformers would make up a tokenizer of a hundred tokens, and every text would be unknown words."""
    from shutil import copy as copy_file

    for name in ("config.json", "model.safetensors"):
        copy_file(f"{folder}/{name}", tmp_path)
    with pytest.raises(UserError, match=r"holds none of tokenizer\.json"):
        T5Conditioner(16, str(tmp_path))(["rain"])


def test_a_text_must_be_text(folder):
    with pytest.raises(ValueError, match="a text condition must be a string, got 3"):
        MultiConditioner({"prompt": T5Conditioner(16, folder)})([{"prompt": 3}])


# ------------------------------------------------------------------ phonemes


class _Speech:
    def __call__(self, text):
        return {"hi": ["HH", "AY1"], "hi, you": ["HH", "AY1", " ", ",", "Y", "UW1"], "": []}[text]


def test_phonemes_by_their_published_rows():
    conditioner = PhonemeConditioner(4)
    conditioner.g2p = _Speech()
    assert conditioner.state_dict().keys() == {"phoneme_embedder.weight"}
    table = conditioner.phoneme_embedder.weight
    assert table.shape == (76, 4)  # 74 symbols of g2p-en, one for padding, one for what is not spoken
    tensor, mask = conditioner(["hi", "hi, you", ""])
    # g2p-en numbers <pad> <unk> <s> </s> AA0 AA1 ... from 0: AY1 is 20, HH 37, UW1 67, Y 71.
    torch.testing.assert_close(tensor[1], table[[39, 22, 1, 1, 73, 69]])
    torch.testing.assert_close(tensor[0], table[[39, 22, 0, 0, 0, 0]])
    assert mask.sum(dim=1).tolist() == [2, 6, 0]


def test_phonemes_are_cut():
    conditioner = PhonemeConditioner(4, max_length=3)
    conditioner.g2p = _Speech()
    assert conditioner(["hi, you", "hi"]).mask.tolist() == [[True] * 3, [True, True, False]]


# ------------------------------------------------------------------ lut


def test_a_table_of_tokens(folder):
    conditioner = TokenizerLUTConditioner(folder, 4, max_length=6, special_tokens=["<verse>"])
    table = conditioner.token_embedder.weight
    assert table.shape == (3 + len(WORDS) + 1, 4)
    tensor, mask = conditioner(["slow <verse>", "rain"])
    torch.testing.assert_close(tensor[0, :3], table[[4, 11, 1]])
    assert not tensor[~mask].any() and mask.sum(dim=1).tolist() == [3, 2]


def test_positions_leave_padding_empty(folder):
    conditioner = TokenizerLUTConditioner(folder, 4, max_length=6, use_abs_pos_emb=True)
    tensor, mask = conditioner(["rain"])
    positions = conditioner.abs_pos_emb.emb.weight * 4**-0.5
    torch.testing.assert_close(tensor[0, :2], conditioner.token_embedder.weight[[10, 1]] + positions[:2])
    assert not tensor[~mask].any()


def test_known_vocabularies_need_no_tokenizer(offline):
    assert TokenizerLUTConditioner("t5-base", 4).token_embedder.num_embeddings == 32100
    assert TokenizerLUTConditioner("someone/their-tokenizer", 4, vocab_size=50).token_embedder.num_embeddings == 50
    with pytest.raises(UserError, match="tokenizer_name: cannot read 'someone/their-tokenizer'"):
        TokenizerLUTConditioner("someone/their-tokenizer", 4)


def test_a_table_that_is_too_small_for_its_tokenizer(folder):
    with pytest.raises(UserError, match="knows 11 tokens, and the table has 5 rows; set vocab_size to 11"):
        TokenizerLUTConditioner(folder, 4, vocab_size=5)(["rain"])


def test_projections_apply_to_tokens(folder):
    conditioner = TokenizerLUTConditioner(folder, 4, max_length=2, project_out=True)
    embedded = conditioner.token_embedder.weight[[10, 1]]
    wanted = F.linear(embedded, conditioner.proj_out.weight, conditioner.proj_out.bias)
    torch.testing.assert_close(conditioner(["rain"]).tensor[0], wanted)
