"""The lora section of a config, and the layers that patterns choose."""

import pytest
from support.layered import layered
from torch import nn

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.lora import attach_lora, lora_config_from
from stable_audio_tools.models.lora.targets import find_targets, matches


def test_the_section_of_loraw_is_read_as_ours() -> None:
    section = {
        "component_whitelist": ["widen"],
        "multiplier": 1,
        "rank": 32,
        "alpha": 32,
        "dropout": 0.1,
        "module_dropout": 0,
        "lr": 1e-4,
        "weight_decompose": True,
    }
    config = lora_config_from(section)
    assert config.adapter_type == "dora-rows"
    assert (config.rank, config.scale(32), config.dropout, config.lr) == (32, 1.0, 0.1, 1e-4)
    assert list(find_targets(layered()[0], config)) == ["widen"]
    assert lora_config_from({**section, "weight_decompose": False}).adapter_type == "lora"


def test_the_section_of_stable_audio_3() -> None:
    section = {"adapter_type": "dora", "rank": 8, "include": ["smooth"], "exclude": [], "base_precision": "bf16"}
    config = lora_config_from(section)
    assert (config.adapter_type, config.base_precision, config.scale(8)) == ("dora-rows", "bf16", 1.0)


@pytest.mark.parametrize(("factor", "first"), [(None, (4, 8)), (4, (4, 4)), (3, (3, 2))])
def test_the_first_kronecker_factor_is_as_large_as_asked_for(factor: int | None, first: tuple[int, int]) -> None:
    config = lora_config_from({"adapter_type": "lokr", "rank": 1, "lokr_factor": factor})
    model = nn.Sequential(nn.Linear(64, 24))
    held = attach_lora(model, config).state_dict()
    assert held["0.lokr_w1"].shape == first
    second = held["0.lokr_w2_a"] @ held["0.lokr_w2_b"]
    assert (first[0] * second.shape[0], first[1] * second.shape[1]) == (24, 64)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"rnak": 4}, r"lora\.rnak: unknown key; did you mean 'rank'\?"),
        ({"rank": 0}, r"lora\.rank: expected at least 1, got 0"),
        ({"dropout": 1.0}, r"lora\.dropout: expected less than 1"),
        ({"adapter_type": "dorra"}, r"lora\.adapter_type: expected 'lora', 'dora-rows'.*got 'dorra'"),
        (
            {"adapter_type": "lora", "weight_decompose": True},
            r"weight_decompose is true and adapter_type is 'lora'; leave one of them out$",
        ),
        (
            {"adapter_type": "bora", "weight_decompose": False},
            r"weight_decompose is false and adapter_type is 'bora'; leave one of them out$",
        ),
        (
            {"include": ["a"], "component_whitelist": ["a"]},
            r"component_whitelist and include both set what is adapted; leave one of them out$",
        ),
        ({"scale_bias": True}, r"scale_bias needs magnitudes of rows, which lora lacks; leave it out$"),
        ({"lokr_factor": 4}, r"lokr_factor has no meaning for lora; leave it out$"),
    ],
)
def test_mistakes_are_sentences(section: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        lora_config_from(section)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("self_attn", "model.layers.0.self_attn.to_qkv", True),
        ("layers.1", "model.layers.1.ff", True),
        ("layers.1", "model.layers.12.ff", False),
        ("layers.[2-4].ff", "model.layers.3.ff", True),
        ("layers.[2-4].ff", "model.layers.13.ff", False),
        ("layers.*.to_qkv", "model.layers.7.self_attn.to_qkv", True),
        ("layers.*.to_q.", "model.layers.7.self_attn.to_qkv", False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


def test_include_exclude_and_ranks_by_pattern() -> None:
    model, _ = layered()
    config = lora_config_from({"include": ["m"], "exclude": ["mix"], "rank": 4, "ranks": {"smooth": 2}, "alpha": 8.0})
    adapter = attach_lora(model, config)
    assert adapter.targets == ("smooth",)
    assert adapter.state_dict()["smooth.lora_A"].shape == (2, 36)
    assert next(iter(adapter.factors)).scale == 4.0


def test_the_pretransform_is_adapted_only_by_name() -> None:
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "pretransform": nn.Sequential(nn.Linear(2, 2))})
    assert list(find_targets(model, lora_config_from({}))) == ["model"]
    assert list(find_targets(model, lora_config_from({"include": ["pretransform.0"]}))) == ["pretransform.0"]


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"include": ["smoth"]}, r"lora\.include: 'smoth' matches no layer that can be adapted; near misses: smooth"),
        (
            {"exclude": ["bias"]},
            r"lora\.exclude: 'bias' matches no layer that can be adapted; parts of the paths are",
        ),
        ({"ranks": {"tabel": 2}}, r"lora\.ranks: 'tabel' matches no layer.*near misses: table"),
        ({"component_whitelist": ["wide"]}, r"lora\.component_whitelist: 'wide' is part of no layer's path.*widen"),
        ({"exclude": ["e", "m"]}, r"lora\.exclude: leaves no layer to adapt"),
    ],
)
def test_a_pattern_without_a_match_is_refused_and_nothing_is_attached(
    section: dict[str, object], sentence: str
) -> None:
    model, _ = layered()
    kinds = [type(layer) for layer in model.children()]
    with pytest.raises(ConfigError, match=sentence):
        attach_lora(model, lora_config_from(section))
    assert [type(layer) for layer in model.children()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
