"""Shipped models at full size on a GPU that is not there, and an encoder of text that has only a size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import load
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.conditioners.language_models import T5GemmaConditioner
from stable_audio_tools.models.conditioners.text import T5Conditioner
from support.fake_cuda import FakeCuda
from support.small_models import CONFIGS

GIB = 2**30
T5_BASE, T5_XXL, T5GEMMA_B = 109_628_544, 4_762_310_656, 281_600_000  # values of the encoders
NEXT = Path(__file__).parents[1] / "parity" / "official_next"  # configs of Stable Audio 3


class HollowEncoder(nn.Module):
    """As large as an encoder of the T5 family, with its inputs and outputs."""

    def __init__(self, values: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = nn.Embedding(values // width, width, dtype=dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.table(input_ids)}


class Words:
    """A tokenizer of words."""

    def __call__(self, texts: list[str], max_length: int, padding: str = "longest", **_: Any) -> dict[str, Tensor]:
        longest = max_length if padding == "max_length" else min(max_length, max(len(text.split()) for text in texts))
        lengths = torch.tensor([len(text.split()) for text in texts])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"input_ids": mask, "attention_mask": mask}


def open_small() -> dict[str, Any]:
    """Open 1.0's codec with the window and conditions of Open Small, and an assumed size of its network."""
    config: dict[str, Any] = load(CONFIGS / "txt2audio" / "stable_audio_open_1_0.json")
    model = config["model"]
    model["conditioning"]["configs"] = [c for c in model["conditioning"]["configs"] if c["id"] != "seconds_start"]
    model["diffusion"] |= {
        "diffusion_objective": "rf_denoiser",
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
    }
    model["diffusion"]["config"] |= {"embed_dim": 1024, "depth": 16, "num_heads": 8, "project_cond_tokens": True}
    model["diffusion"]["config"] |= {"global_cond_dim": 768}
    return {**config, "sample_size": 524288}


def language_model() -> dict[str, Any]:
    """A language model of MusicGen small's width and depth over the codes of the 44.1 kHz DAC."""
    config: dict[str, Any] = load(CONFIGS / "lm" / "tiny_lm.json")
    codec = config["model"]["pretransform"]["config"]
    codec["encoder"]["config"] |= {"latent_dim": 1024, "d_model": 64, "strides": [2, 4, 8, 8]}
    codec["decoder"]["config"] |= {"latent_dim": 1024, "channels": 1536, "rates": [8, 8, 4, 2]}
    codec["bottleneck"]["config"] |= {"input_dim": 1024, "n_codebooks": 9, "codebook_size": 1024}
    codec |= {"latent_dim": 1024, "downsampling_ratio": 512}
    config["model"]["lm"]["config"] |= {"embed_dim": 1024, "depth": 24, "dim_heads": 64}
    return {**config, "sample_size": 441 * 1024, "sample_rate": 44100}


def hollow_model(
    name: str | dict[str, Any], gpu: FakeCuda, precision: str = "float32", offload: bool = False, t5: int = T5_BASE
) -> AudioModel:
    """A config, or a shipped one by its name, as `AudioModel` on the device.

    Its text encoders are replaced by hollow ones: those of the T5 family have `t5` values, T5Gemma those of its size b.
    """
    if isinstance(name, str):
        name = load(next(iter([*CONFIGS.rglob(f"{name}.json"), NEXT / f"{name}.config.json"])))
    config = name
    with gpu.hollow():
        module = create_model_from_config(config)
    for conditioner in module.modules():
        if isinstance(conditioner, T5Conditioner):
            _hollow(conditioner, gpu, t5)
        elif isinstance(conditioner, T5GemmaConditioner):
            _hollow_gemma(conditioner, gpu)
    return AudioModel(module, config, "cuda", precision, offload=offload)


def _hollow(conditioner: T5Conditioner, gpu: FakeCuda, values: int) -> None:
    def load_encoder(dtype: torch.dtype) -> nn.Module:
        with gpu.hollow():
            return HollowEncoder(values, conditioner.dim, dtype)

    conditioner.t5_model_name = f"hollow encoder {id(gpu)} of {values}"
    conditioner._load = load_encoder  # type: ignore[method-assign]
    conditioner.__dict__["tokenizer"] = Words()


def _hollow_gemma(conditioner: T5GemmaConditioner, gpu: FakeCuda) -> None:
    def create(dtype: torch.dtype, empty: bool = False) -> nn.Module:
        with gpu.hollow():
            return HollowEncoder(T5GEMMA_B, conditioner.dim, dtype)

    conditioner.source = f"hollow encoder {id(gpu)}"
    conditioner._create = create  # type: ignore[method-assign]
    conditioner.__dict__["tokenizer"] = Words()


def watch_steps(gpu: FakeCuda) -> SimpleNamespace:
    """A callback of sampling whose `steps` are what the device did in each step after the first."""
    seen: list[tuple[int, int, int]] = []
    watched = SimpleNamespace(steps=[])

    def callback(_: dict[str, Any]) -> None:
        seen.append((sum(gpu.waits.values()), sum(gpu.host_copies.values()), gpu.converted_bytes))
        if len(seen) > 1:
            watched.steps.append(tuple(now - before for now, before in zip(seen[-1], seen[-2])))

    watched.callback = callback
    return watched
