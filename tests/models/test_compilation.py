"""Compiled networks: which parts are, that names of weights stay, and that results and training are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import CONFIGS, narrowed, small_model

from stable_audio_tools.core.config import load
from stable_audio_tools.inference.generation.model import load as load_audio_model
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.compilation import compile_network
from stable_audio_tools.models.transformer.blocks import TransformerBlock
from stable_audio_tools.training import create_training_wrapper_from_config

LAYERS = "TransformerBlock"


def config_of(name: str) -> dict[str, Any]:
    config = narrowed(load(next(CONFIGS.rglob(f"{name}.json"))))
    config.get("training", {}).pop("demo", None)
    return config


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny_diffusion_cond", [LAYERS]),
        ("tiny_lm", [LAYERS]),
        ("tiny_autoencoder", ["OobleckEncoder", "OobleckDecoder"]),
        ("tiny_diffusion_autoencoder", ["OobleckEncoder", "DAU1DCondWrapper"]),
        ("tiny_diffusion_uncond", ["DiffusionAttnUnet1D"]),
    ],
)
def test_the_network_of_every_kind_is_compiled_where_it_is_called(name: str, parts: list[str]) -> None:
    model = create_model_from_config(config_of(name))
    names = list(model.state_dict())
    compiled = compile_network(model, backend="eager")
    assert [type(part).__name__ for part in compiled] == parts
    assert list(model.state_dict()) == names


def test_layers_are_one_graph_in_one_piece() -> None:
    config = config_of("tiny_diffusion_cond")
    config["model"]["diffusion"]["config"]["depth"] = 3
    model = create_model_from_config(config).eval()
    graphs = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layers = compile_network(model, backend=counted, fullgraph=True)
    assert len(layers) == 3 and all(isinstance(layer, TransformerBlock) for layer in layers)
    width = config["model"]["diffusion"]["config"]["embed_dim"]
    with torch.no_grad():
        for layer in layers:
            layer(torch.randn(2, 9, width), context=torch.randn(2, 4, width))
    assert len(graphs) == 1


def test_a_compiled_model_makes_the_same(tmp_path: Path) -> None:
    files = small_model("tiny_diffusion_cond", tmp_path)
    model = load_audio_model(files.config, files.weights, "cpu")
    asked: dict[str, Any] = {"sound": "rain", "seed": 3, "steps": 3, "cfg_scale": 3.0, "progress": False}
    before = model.generate(**asked).audio
    model.compile(backend="aot_eager")
    torch.testing.assert_close(model.generate(**asked).audio, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("tiny_diffusion_cond", {"sound": "rain", "steps": 2}),
        ("tiny_lm", {"sound": "rain", "seconds": 0.2}),
        ("tiny_codec", {"init_audio": (22050, torch.sin(torch.arange(6000) * 0.05)[None])}),
    ],
)
def test_every_type_is_compiled_once_for_many_calls(tmp_path: Path, name: str, asked: dict[str, Any]) -> None:
    """Network and decoder; the steps of a language model, each longer than the last, share their graphs."""
    files = small_model(name, tmp_path)
    model = load_audio_model(files.config, files.weights, "cpu")
    before = model.generate(seed=3, progress=False, **asked).audio
    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model.compile(backend=counted)
    torch.testing.assert_close(model.generate(seed=3, progress=False, **asked).audio, before, atol=1e-5, rtol=1e-5)
    first = len(graphs)
    assert 0 < first < 12
    model.generate(seed=4, progress=False, **asked)
    assert len(graphs) == first


@pytest.mark.parametrize("name", ["tiny_autoencoder", "tiny_diffusion_cond"])
def test_training_steps_pass_through_what_was_compiled(name: str) -> None:
    config = config_of(name)
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    calls = []

    def counted(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compile_network(wrapper.exported, backend=counted)
    audio = torch.randn(1, 2, config["sample_size"])
    if name == "tiny_autoencoder":  # its wrapper optimises by hand, which takes a trainer
        wrapper.exported.decode(wrapper.exported.encode(audio)).square().mean().backward()
    else:
        wrapper.log_terms = wrapper.learning_rate = lambda *_, **__: 0.0
        wrapper.training_step((audio, [{"sound": "rain", "seconds_total": 1}]), 0).backward()
    assert calls
    grads = [p.grad for p in wrapper.exported.parameters() if p.requires_grad]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)
