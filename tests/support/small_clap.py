"""CLAP on small random networks, as files: a checkpoint of laion-clap, and a folder of transformers."""

import re
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "slow", "piano", "rain"]
VOCABULARY = 5 + len(WORDS)


def small_clap(width: int = 768) -> Any:
    """All of CLAP with texts of the published width, and as little else as can be."""
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    text = ClapTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        intermediate_size=64,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        max_position_embeddings=80,
        pad_token_id=1,
    )
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=16,
        hidden_size=128,
        depths=[2, 1, 1, 1],
        num_attention_heads=[2, 2, 4, 4],
        num_hidden_layers=4,
    )
    torch.manual_seed(0)
    return ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict())).eval()


_BACK = (  # from the names of transformers to those of laion-clap
    (r"^text_model\.", "text_branch."),
    (r"^audio_model\.audio_encoder\.", "audio_branch."),
    (r"_projection\.linear1\.", "_projection.0."),
    (r"_projection\.linear2\.", "_projection.2."),
    (r"(layers.*)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"(layers.*)\.attention\.self\.", r"\1.attn."),
    (r"(layers.*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(layers.*)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.batch_norm\.", ".bn0."),
)


def names_of_laion(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _BACK:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed


def tokenizer() -> Any:
    """Knows the words above."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    vocabulary.update({word: 5 + index for index, word in enumerate(WORDS)})
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def write_checkpoint(clap: Any, folder: Path) -> str:
    """A checkpoint as laion-clap saves it."""
    state = {f"module.{name}": value for name, value in names_of_laion(clap.state_dict()).items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    state["module.text_transform.sequential.0.weight"] = torch.zeros(2, 2)
    path = folder / "clap.pt"
    torch.save({"epoch": 3, "name": "small", "state_dict": state, "optimizer": {}}, path)
    return str(path)


def write_folder(clap: Any, folder: Path, truncation: str = "rand_trunc") -> str:
    """A folder as transformers saves it."""
    from transformers import ClapFeatureExtractor

    clap.save_pretrained(folder)
    ClapFeatureExtractor(truncation=truncation, frequency_min=50).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
