"""Parametrised adapters: on and off, stacked, filtered for one pass, tied, in files; mistakes in a sentence."""

import json

import pytest
import torch
from support.next_cases import build, diffusion
from torch import nn

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.models.lora import (
    LoRAParametrization,
    add_lora,
    add_lora_by_name,
    apply_to_lora,
    attach_lora,
    cast_base_to_precision,
    convert_lora_ckpt_to_safetensors,
    detect_dora_variant,
    disable_lora,
    enable_lora,
    filter_lora_layers,
    get_bias_params,
    get_lora_count,
    get_lora_layers,
    get_lora_params,
    get_lora_state_dict,
    has_lora,
    infer_global_rank,
    load_and_apply_loras,
    load_lora_checkpoint,
    load_multiple_lora,
    merge_lora,
    remove_lora,
    remove_lora_by_index,
    resolve_adapter_type,
    save_lora_safetensors,
    select_lora,
    set_lora_strength,
    tie_weights,
    untie_weights,
)
from stable_audio_tools.models.lora.config import LoraConfig
from stable_audio_tools.models.lora.parametrization import chosen_loras, expand_pattern, layer_config

KINDS = ["lora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def stir(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in get_lora_params(model):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


X = torch.linspace(-1, 1, 18).reshape(3, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_as_the_base_trains_alone_and_merges(kind):
    base, model = network(), network()
    model.requires_grad_(False)
    add_lora(model, layer_config(2, 4, kind))
    torch.testing.assert_close(model(X), base(X))
    stir(model)
    adapted = model(X)
    assert not torch.allclose(adapted, base(X), atol=1e-3)
    adapted.sum().backward()
    assert all(parameter.grad is not None for parameter in get_lora_params(model))
    set_lora_strength(model, 0.0)
    torch.testing.assert_close(model(X), base(X))
    set_lora_strength(model, 1.0)
    assert merge_lora(model) == 2
    assert not has_lora(model) and set(model.state_dict()) == set(base.state_dict())
    torch.testing.assert_close(model(X), adapted)


def test_stacked_adapters_are_counted_switched_and_removed_by_index():
    base, model = network(), network()
    add_lora(model, layer_config(2, 2, "lora"))
    add_lora_by_name(model, ["2"], layer_config(2, 2, "dora-rows", lora_index=1))
    stir(model)
    assert get_lora_count(model) == 2 and [name for name, _ in get_lora_layers(model)] == ["0", "2", "2"]
    both = model(X)
    disable_lora(model, lora_index=1)
    first_alone = model(X)
    assert not torch.allclose(both, first_alone)
    enable_lora(model)
    torch.testing.assert_close(model(X), both)
    remove_lora_by_index(model, 1)
    torch.testing.assert_close(model(X), first_alone)
    remove_lora_by_index(model, 0)
    assert not has_lora(model) and torch.equal(model(X), base(X))
    add_lora(model)
    remove_lora(model)
    assert torch.equal(model(X), base(X))


def test_choices_hold_for_one_pass():
    model = stir_with_two()
    switched = [adapter.enabled for _, adapter in get_lora_layers(model)]
    with chosen_loras(model, lambda: 0.7, (0.5, 1.0), "2", None):
        assert [(name, adapter.enabled) for name, adapter in get_lora_layers(model)] == [("0", True), ("2", False)]
    with chosen_loras(model, lambda: 0.3, (0.5, 1.0), None, None):
        assert not any(adapter.enabled for _, adapter in get_lora_layers(model))
    assert [adapter.enabled for _, adapter in get_lora_layers(model)] == switched
    filter_lora_layers(model, "0, nothing")
    assert [adapter.enabled for _, adapter in get_lora_layers(model)] == [False, True]


def stir_with_two() -> nn.Module:
    model = network()
    add_lora(model)
    return stir(model)


def test_patterns_expand():
    assert expand_pattern("layers.[1-3].to") == ["layers.1.to", "layers.2.to", "layers.3.to"]
    assert expand_pattern("[1-0].[4-4]") == ["0.4", "1.4"]


def test_a_linear_layer_and_its_transposed_embedding_share_an_adapter():
    linear, embedding = nn.Linear(6, 9, bias=False), nn.Embedding(9, 6)
    embedding.weight = linear.weight
    add_lora(linear)
    pair = nn.ModuleList([linear, embedding])
    add_lora(embedding, {nn.Embedding: {"weight": LoRAParametrization.from_embedding}})
    tie_weights(linear, embedding)
    stir(linear)
    torch.testing.assert_close(embedding.weight, linear.weight)
    untie_weights(linear, embedding)
    stir(linear)
    assert not torch.allclose(embedding.weight, linear.weight)
    with pytest.raises(ValueError, match="adapter of type 'lora' on both"):
        tie_weights(nn.Linear(2, 2), embedding)
    assert len(pair) == 2


def test_dropout_acts_in_training_only():
    model = nn.Sequential(nn.Linear(6, 5))
    build_dropping = {nn.Linear: {"weight": lambda layer: LoRAParametrization.from_linear(layer, lora_dropout_p=0.5)}}
    add_lora(model, build_dropping)
    stir(model)
    assert torch.equal(model.eval()(X), model(X))
    assert not torch.equal(model.train()(X), model(X))


def test_several_sets_of_tensors_of_one_adapter():
    model = stir_with_two()
    first = {name: value.clone() for name, value in get_lora_state_dict(model).items()}
    stir(model)
    second = {name: value.clone() for name, value in get_lora_state_dict(model).items()}
    expected = model(X)
    load_multiple_lora(model, [first, second])
    select_lora(model, 0)
    assert not torch.allclose(model(X), expected)
    select_lora(model, 1)
    torch.testing.assert_close(model(X), expected)
    counted = []
    model.apply(apply_to_lora(counted.append))
    assert len(counted) == 2 and len(list(get_bias_params(model))) == 2


def test_the_base_in_half_precision_keeps_adapters_in_float32():
    model = stir_with_two()
    cast_base_to_precision(model, "bf16")
    assert {parameter.dtype for parameter in get_lora_params(model)} == {torch.float32}
    assert model(X.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(UserError, match="base_precision is 'int3'; allowed: bf16"):
        cast_base_to_precision(model, "int3")


def test_magnitudes_of_old_files_tell_the_axis():
    columns = {"a.parametrizations.weight.0.magnitude": torch.ones(1, 6)}
    assert detect_dora_variant(columns) == resolve_adapter_type("dora", columns) == "dora-cols"
    assert resolve_adapter_type("dora", {"a.magnitude": torch.ones(5, 1)}) == "dora-rows"
    assert resolve_adapter_type("dora") == "dora-rows" and resolve_adapter_type("bora", columns) == "bora"
    with pytest.raises(UserError, match="hold no adapter"):
        infer_global_rank({"weight": torch.ones(2)})


def test_files_of_both_kinds_load_and_name_mistakes(tmp_path):
    donor = build(diffusion())
    add_lora(donor.model, layer_config(2, 4, "lora-xs"), include=["self_attn"])
    state = get_lora_state_dict(stir(donor.model))
    settings = {"rank": 2, "alpha": 4, "adapter_type": "lora-xs", "include": ["self_attn"]}
    torch.save({"state_dict": state, "lora_config": settings}, tmp_path / "calm.ckpt")
    written = convert_lora_ckpt_to_safetensors(tmp_path / "calm.ckpt")
    tensors, read = load_lora_checkpoint(written)
    assert read == settings and set(tensors) == set(state) and {t.dtype for t in tensors.values()} == {torch.float16}
    bases = {f"model.{name}.weight": {"U": adapter.U, "V": adapter.V} for name, adapter in get_lora_layers(donor.model)}
    torch.save(bases, tmp_path / "bases.pt")
    models = [build(diffusion()), build(diffusion())]
    assert load_and_apply_loras(models[0], [written], "diffusion_cond_inpaint") == ["calm"]
    load_and_apply_loras(models[1], [written], "diffusion_cond_inpaint", tmp_path / "bases.pt")
    ours, theirs = (model.state_dict() for model in models)
    assert len(get_lora_layers(models[0].model)) == len(get_lora_layers(donor.model)) > 0
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="no such adapter file"):
        load_and_apply_loras(models[0], [tmp_path / "none.safetensors"], "diffusion_cond")
    save_lora_safetensors(
        {"x.parametrizations.weight.0.lora_A": torch.ones(2, 3)}, {"rank": 2}, tmp_path / "b.safetensors"
    )
    with pytest.raises(UserError, match="none of its tensors belongs to a layer of this model"):
        load_and_apply_loras(models[0], [tmp_path / "b.safetensors"], "diffusion_cond")
    save_lora_safetensors(tensors, {"rank": "two"}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="rank of its lora_config is 'two'"):
        load_and_apply_loras(models[0], [tmp_path / "c.safetensors"], "diffusion_cond")
    torch.save({"weights": 1}, tmp_path / "d.ckpt")
    with pytest.raises(UserError, match="not an adapter checkpoint"):
        load_lora_checkpoint(tmp_path / "d.ckpt")


@pytest.mark.parametrize("format", ["native", "sa3"])
def test_both_kinds_of_adapters_read_the_same_files(tmp_path, format):
    from stable_audio_tools.models.lora import load_lora, save_lora

    donor = build(diffusion())
    adapter = attach_lora(donor, LoraConfig(rank=2, alpha=4, adapter_type="dora-rows", include=["self_attn"]), seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_lora(adapter, tmp_path / "ours.safetensors", model=donor, format=format)
    read, parametrized = build(diffusion()), build(diffusion())
    load_lora(read, tmp_path / "ours.safetensors")
    _, settings = load_lora_checkpoint(tmp_path / "ours.safetensors")
    assert settings["rank"] == 2, json.dumps(settings)
    load_and_apply_loras(parametrized, [tmp_path / "ours.safetensors"], "diffusion_cond_inpaint")
    weights = dict(get_lora_layers(parametrized.model))
    layer = parametrized.model.get_submodule(next(iter(weights)))
    ours = read.model.get_submodule(next(iter(weights)))
    torch.testing.assert_close(layer.weight, ours.adapted_weight(), atol=2e-3, rtol=2e-3)


def test_unknown_types_and_missing_weights_are_named():
    with pytest.raises(ValueError, match="adapter_type is 'lokr'; allowed: lora, dora"):
        LoRAParametrization(4, 4, adapter_type="lokr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs the weight W0 or its svd_bases"):
        LoRAParametrization(4, 4, adapter_type="lora-xs")
