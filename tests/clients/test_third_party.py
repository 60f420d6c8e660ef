"""Other people's projects: each loads a tiny model in its own way and makes its own call."""

import importlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clients.third_party import CLIENTS, OPEN, PROMPT, Client
from support.small_models import narrowed

from stable_audio_tools import create_model_from_config, get_pretrained_model
from stable_audio_tools.core.config import load, save
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.utils import load_ckpt_state_dict


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder as of the Hub for each objective: a model of texts and times."""
    config = narrowed(load("tiny_text_to_audio"))
    start = {"id": "seconds_start", "type": "number", "config": {"min_val": 0, "max_val": 16}}
    config["model"]["conditioning"]["configs"].append(start)
    config["model"]["diffusion"]["global_cond_ids"] = ["seconds_start", "seconds_total"]
    config["model"]["diffusion"]["cross_attention_cond_ids"] = ["prompt", "seconds_total"]
    config["model"]["diffusion"]["config"]["global_cond_dim"] = 2 * config["model"]["conditioning"]["cond_dim"]
    folders = {}
    for objective in ("v", "rectified_flow"):
        config["model"]["diffusion"]["diffusion_objective"] = objective
        folder = folders[objective] = tmp_path_factory.mktemp(objective)
        save(config, folder / "model_config.json")
        torch.manual_seed(0)
        save_weights(create_model_from_config(config), folder / "model.safetensors")
    return folders


def load_model(client: Client, folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    if client.loader == "pretrained":
        return get_pretrained_model(str(folder))
    config = json.loads((folder / "model_config.json").read_text())
    if client.loader == "app":
        gradio = importlib.import_module("stable_audio_tools.interface.gradio")
        return gradio.load_model(config, str(folder / "model.safetensors"), device="cpu", model_half=False)
    model = create_model_from_config(config)
    model.load_state_dict(load_ckpt_state_dict(str(folder / "model.safetensors")), strict=client.loader == "files")
    return model, config


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_project_loads_and_generates(client: Client, models: dict[str, Path]) -> None:
    model, config = load_model(client, models[client.objective])
    model = model.to("cpu")
    if client.dtype is not None:
        model = model.to(getattr(torch, client.dtype))
    rate, size = config["sample_rate"], config["sample_size"]
    if client.seconds is not None:
        size = int(client.seconds * rate)
    options: dict[str, Any] = dict(client.options)
    if client.negative is not None:
        options["negative_conditioning"] = [dict(client.negative)]
    if client.init is not None:
        pcm = (np.sin(np.arange(size) / 9) * 9000).astype(np.int16)
        audio = torch.from_numpy(np.stack([pcm, pcm])).float().div(32767)
        options["init_audio"] = (rate, audio if client.init == "stereo of 16 bits" else audio[:1])
    for sampler in client.samplers:
        with torch.amp.autocast("cpu") if client.autocast else nullcontext():
            output = generate_diffusion_cond(
                model,
                steps=3,
                cfg_scale=7,
                conditioning=[dict(client.conditions)],
                sample_size=size,
                sampler_type=sampler,
                device="cpu",
                **options,
            )
        batch, channels, length = output.shape
        assert (batch, channels) == (1, model.io_channels if model.pretransform is None else output.shape[1])
        assert torch.isfinite(output).all(), sampler
        assert 0 <= size - length < model.min_input_length or length >= size, "published: cut to whole frames"


def test_a_negative_may_have_another_number_of_words(models: dict[str, Path]) -> None:
    """Zeros that a mask hides are appended, as in a batch of texts of different lengths."""
    model, config = get_pretrained_model(str(models["rectified_flow"]))
    options = {"steps": 2, "cfg_scale": 3, "sample_size": config["sample_size"], "device": "cpu", "seed": 1}
    prompts = [{"prompt": text, "seconds_start": 0, "seconds_total": 1} for text in ("rain", "a slow piano in rain")]
    for positive, negative in (prompts, prompts[::-1]):
        single = generate_diffusion_cond(model, conditioning=[positive], negative_conditioning=[negative], **options)
        options["batch_size"] = 2
        both = generate_diffusion_cond(
            model, conditioning=[positive, prompts[1]], negative_conditioning=[negative, prompts[1]], **options
        )
        del options["batch_size"]
        torch.testing.assert_close(single[0], both[0], atol=1e-4, rtol=1e-3)


def test_a_pre_hook_that_changes_the_input_acts_in_every_step(models: dict[str, Path]) -> None:
    """An adapter of others adds its embedding to what reaches the network, the guided half left alone."""
    model, config = get_pretrained_model(str(models["v"]))
    options = {"steps": 3, "cfg_scale": 7, "sample_size": config["sample_size"], "device": "cpu", "seed": 1, **OPEN}
    plain = generate_diffusion_cond(model, conditioning=[PROMPT], sampler_type="dpmpp-3m-sde", **options)
    calls = []

    def inject(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return (args[0] + 0.1, *args[1:])

    handle = model.model.register_forward_pre_hook(inject)
    changed = generate_diffusion_cond(model, conditioning=[PROMPT], sampler_type="dpmpp-3m-sde", **options)
    handle.remove()
    assert len(calls) == 3 and not torch.allclose(changed, plain)
    again = generate_diffusion_cond(model, conditioning=[PROMPT], sampler_type="dpmpp-3m-sde", **options)
    torch.testing.assert_close(again, plain)
