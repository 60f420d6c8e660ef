"""A tiny config of model type `clap`, with a random RoBERTa that knows a few words."""

from pathlib import Path
from typing import Any

import torch

from support.small_t5 import WORDS


def write_roberta(folder: Path) -> str:
    """Return the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{word: 4 + i for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


def clap_config(roberta: str, noised: bool = False, training: dict[str, Any] | None = None) -> dict[str, Any]:
    """Patches of 32 samples as latents, one layer."""
    audio: dict[str, Any] = {"embed_dim": 32, "depth": 1, "dim_in": 64, "dim_heads": 16}
    if noised:
        audio |= {"noise_config": {"embed_dim": 8}, "embed_type": "avg_pool"}
    return {
        "model_type": "clap",
        "sample_rate": 8000,
        "sample_size": 2048,
        "audio_channels": 2,
        "model": {
            "joint_embed_dim": 24,
            "audio": {"model": {"type": "transformer", "config": audio}},
            "text": {"context_length": 8, "model": {"type": "roberta", "config": {"name": roberta}}},
            "pretransform": {"type": "patched", "config": {"channels": 2, "patch_size": 32}},
        },
        "training": training or {"learning_rate": 1e-3},
    }
