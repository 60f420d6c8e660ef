"""Adapters on layers: what the definition says, live, merged, stacked and switched."""

import copy

import pytest
import torch
from support.layered import TYPES, Factors, Layered, defined_model, defined_weight, factors_of, layered, trained
from torch import nn
from torch.func import functional_call

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d
from stable_audio_tools.models.checkpoints import load_into, save_weights
from stable_audio_tools.models.lora import (
    LoraConfig,
    attach_lora,
    attached_loras,
    merge_lora,
    unload_lora,
    unmerge_lora,
)
from stable_audio_tools.models.lora.formula import singular_bases
from stable_audio_tools.training.ema import WeightAverage

SCALE = 2.0  # alpha 6 over rank 3


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_output_is_unchanged_at_the_start(kind: str) -> None:
    model, x = layered(torch.float32)
    before = model(x)
    attach_lora(model, LoraConfig(adapter_type=kind, rank=3))
    assert (model(x) - before).abs().max() < 1e-6  # a bias added in another place rounds otherwise


def test_live_output_is_that_of_the_defined_weights(kind: str) -> None:
    model, x = layered()
    adapter = trained(model, kind)
    expected = defined_model(model, [(kind, 1.0, factors_of(adapter))], SCALE)(x)
    assert (expected - Layered.forward(_bare(model), x)).abs().max() > 1e-2
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_the_defined_weights(kind: str) -> None:
    model, x = layered()
    adapter = trained(model, kind)
    layers = {
        path: {n: t.clone().requires_grad_() for n, t in held.items()} for path, held in factors_of(adapter).items()
    }
    weights = {}
    for path, held in layers.items():
        weight = model.get_submodule(path).weight.detach()
        weights[f"{path}.weight"] = defined_weight(kind, weight.flatten(1), held, SCALE).view(weight.shape)
    unload = copy.deepcopy(model)
    unload_lora(unload)
    functional_call(unload, weights, (x,)).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in adapter.named_factors():
        path, _, factor = name.rpartition(".")
        torch.testing.assert_close(parameter.grad, layers[path][factor].grad, rtol=1e-7, atol=1e-9)
    assert all(p.grad is None for name, p in model.named_parameters() if "lora_factors" not in name)


def test_training_moves_every_factor_and_no_bit_of_the_base(kind: str) -> None:
    model, x = layered(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = attach_lora(model, LoraConfig(adapter_type=kind, rank=3), seed=1)
    start = {name: value.clone() for name, value in adapter.state_dict().items()}
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
    target, losses = torch.randn(2, 5, 7), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all((value != start[name]).any() for name, value in adapter.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_merged_equals_live_and_unmerged_equals_the_base(kind: str) -> None:
    model, x = layered(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model, kind).strength = 0.7
    live = model(x)
    assert merge_lora(model) == 5
    assert (model(x) - live).abs().max() < 1e-5
    assert not torch.equal(model.state_dict()["widen.weight"], before["widen.weight"])
    unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), live)


def test_strength_goes_continuously_through_zero(kind: str) -> None:
    model, x = layered()
    base = model(x)
    adapter = trained(model, kind)
    adapter.strength = 0.0
    assert torch.equal(model(x), base)
    for strength in (1e-6, -1e-6):
        adapter.strength = strength
        assert 0 < (model(x) - base).abs().max() < 1e-4
    adapter.strength = -0.5
    expected = defined_model(model, [(kind, -0.5, factors_of(adapter))], SCALE)(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["dora-rows", "bora"])
def test_scaled_biases_are_live_as_merged(kind: str) -> None:
    model, x = layered()
    adapter = trained(model, kind, scale_bias=True)
    adapter.strength = 0.6
    live = model(x)
    plain, _ = layered()
    trained(plain, kind).strength = 0.6
    assert (plain(x) - live).abs().max() > 1e-3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_lora(model)
    assert (model.widen.bias - before["widen.bias"]).abs().max() > 1e-3
    torch.testing.assert_close(model(x), live, rtol=1e-9, atol=1e-10)
    unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_the_strength_is_half_the_change_of_a_linear_layer() -> None:
    layer, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    base = layer(x)
    adapter = trained(layer, "lora")
    full = layer(x) - base
    adapter.strength = 0.5
    torch.testing.assert_close(layer(x) - base, full / 2)


@pytest.mark.parametrize("second", TYPES)
def test_stacked_adapters_add_up_in_any_order(second: str) -> None:
    outputs = []
    for order in ((0, 1), (1, 0)):
        model, x = layered()
        made: dict[int, tuple[str, float, Factors]] = {}
        for index in order:
            kind, strength = (("bora", 0.4), (second, -0.7))[index]
            adapter = attach_lora(model, LoraConfig(adapter_type=kind, rank=3, alpha=6.0), seed=index, name=f"a{index}")
            with torch.no_grad():
                for parameter in adapter.parameters():
                    parameter.add_(0.2 * torch.sin(torch.arange(parameter.numel()) + index).view(parameter.shape))
            adapter.strength = strength
            made[index] = (kind, strength, factors_of(adapter))
        outputs.append(model(x))
        expected = defined_model(model, list(made.values()), SCALE)(x)
        torch.testing.assert_close(outputs[-1], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(*outputs)


def test_switches_reach_the_layers_and_taking_off_restores_the_classes() -> None:
    model, x = layered()
    base, kinds = model(x), [type(layer) for layer in model.children()]
    adapter = trained(model, "bora")
    adapted = model(x)
    adapter.enabled = False
    assert torch.equal(model(x), base)
    adapter.enabled = True
    assert torch.equal(model(x), adapted)
    adapter.layer_filter = ["widen"]
    layers = {path: held if path == "widen" else None for path, held in factors_of(adapter).items()}
    alone = _bare(model)
    weight = alone.widen.weight
    weight.data = defined_weight("bora", weight.detach(), layers["widen"] or {}, SCALE)
    torch.testing.assert_close(model(x), alone(x), rtol=1e-9, atol=1e-10)
    adapter.layer_filter = None
    assert torch.equal(model(x), adapted)
    with pytest.raises(ConfigError, match=r"'widem' matches none of the adapter's layers; near misses: widen"):
        adapter.layer_filter = ["widem"]
    unload_lora(model)
    assert [type(layer) for layer in model.children()] == kinds
    assert torch.equal(model(x), base)


def test_base_checkpoints_load_and_save_with_adapters_on(tmp_path) -> None:
    model, x = layered(torch.float32)
    save_weights(model, tmp_path / "base.safetensors")
    other = Layered()
    adapter = attach_lora(other, LoraConfig(rank=3))
    load_into(other, tmp_path / "base.safetensors")
    assert list(other.state_dict()) == list(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert len(adapter.state_dict()) == 10


@pytest.mark.parametrize("kind", ["dora-rows", "bora"])
def test_another_base_in_place_is_noticed(kind: str) -> None:
    model, x = layered()
    adapter = trained(model, kind)
    model(x)
    with torch.no_grad():
        for layer in model.children():
            layer.weight.mul_(torch.linspace(0.5, 2, layer.weight.numel()).view(layer.weight.shape))
    expected = defined_model(model, [(kind, 1.0, factors_of(adapter))], SCALE)(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
def test_weight_normed_convolutions_are_adapted_and_merged(kind: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(WNConv1d(4, 6, 3, padding=1)).eval(), torch.randn(2, 4, 9)
    base, names = model(x), list(model.state_dict())
    trained(model, kind)
    live = model(x)
    assert (live - base).abs().max() > 1e-2
    merge_lora(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), live)
    unmerge_lora(model)
    unload_lora(model)
    assert torch.equal(model(x), base)


def test_a_copy_has_an_adapter_of_its_own() -> None:
    model, x = layered()
    adapter = trained(model, "dora-rows")
    twin = copy.deepcopy(model)
    twin_adapter = attached_loras(twin)["lora"]
    live = model(x)
    assert torch.equal(twin(x), live)
    twin_adapter.strength = 0.0
    next(twin_adapter.parameters()).data.zero_()
    assert torch.equal(model(x), live)
    assert adapter.strength == 1.0
    assert not torch.equal(twin(x), live)


def test_averages_and_optimisers_see_the_factors_alone() -> None:
    model, x = layered(torch.float32)
    adapter = attach_lora(model, LoraConfig(rank=3), seed=0)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters()}
    average = WeightAverage(model, beta=0.5)
    before = model(x)
    average.update()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    moved = model(x)
    with average.swapped_in():
        assert torch.equal(model(x), before)
    assert torch.equal(model(x), moved)
    assert len(average.averaged_state_dict()) == 10


def test_the_handle_holds_the_state_of_training() -> None:
    module = nn.Module()
    module.model, x = layered(torch.float32)
    module.lora = trained(module.model, "bora")
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert {name.split(".")[0] for name in state} == {"model", "lora"}
    live = module.model(x)
    with torch.no_grad():
        for parameter in module.lora.parameters():
            parameter.zero_()
    module.load_state_dict(state)
    assert torch.equal(module.model(x), live)
    state.pop("lora.widen.lora_A")
    with pytest.raises(RuntimeError, match=r"Missing key.*lora\.widen\.lora_A"):
        module.load_state_dict(state)


def test_moves_and_modes_of_the_model_reach_the_factors() -> None:
    model, x = layered(torch.float32)
    adapter = trained(model, "dora-rows")
    model.to(torch.float64)
    assert {p.dtype for p in adapter.parameters()} == {torch.float64}
    assert model(x).dtype == torch.float64
    model.eval()
    assert not any(factors.training for factors in adapter.factors)


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
def test_dropout_reaches_the_layers_and_rests_in_eval_mode(kind: str) -> None:
    model, x = layered()
    trained(model, kind, dropout=0.5)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_module_dropout_leaves_whole_layers_out() -> None:
    layer, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    base = layer(x)
    trained(layer, "lora", module_dropout=0.5)
    adapted = layer.eval()(x)
    layer.train()
    outputs = [layer(x) for _ in range(40)]
    skipped = sum(torch.equal(out, base) for out in outputs)
    assert 8 < skipped < 32
    assert all(torch.equal(out, base) or torch.equal(out, adapted) for out in outputs)


def test_seed_and_generator_decide_the_start() -> None:
    states = []
    for seed in (3, 3, 4):
        model, _ = layered(torch.float32)
        states.append(attach_lora(model, LoraConfig(rank=3), seed=seed).state_dict()["widen.lora_A"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_keeps_factors_in_float32(dtype: torch.dtype) -> None:
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    for kind in TYPES:
        layer, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(4, 16).to(dtype)
        adapter = attach_lora(layer, LoraConfig(adapter_type=kind, rank=3, base_precision=precision))
        assert layer[0].weight.dtype == dtype
        assert {p.dtype for p in adapter.parameters()} == {torch.float32}
        out = layer(x)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        assert all(p.grad is not None for p in adapter.parameters())


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
@pytest.mark.parametrize("defect", [0, 3])
def test_singular_vectors_are_those_of_an_svd_in_one_sign(shape: tuple[int, int], defect: int) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    weight[:, : shape[1] - defect if defect else 0] = 0  # of rank 3, when not whole
    left, right = singular_bases(weight, 4)
    assert all(column[column.abs().argmax()] > 0 for column in left.T)
    expected = torch.linalg.svdvals(weight)[:4]
    torch.testing.assert_close((left.T @ weight @ right).diagonal(), expected)
    for vectors in (left, right):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora-xs"])
def test_adapted_layers_compile_in_one_piece(kind: str) -> None:
    model, x = layered(torch.float32)
    trained(model, kind)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_mistakes_about_adapters_on_a_model() -> None:
    model, _ = layered(torch.float32)
    with pytest.raises(UserError, match="no adapters to merge"):
        merge_lora(model)
    adapter = trained(model, "lora")
    with pytest.raises(ConfigError, match="an adapter named 'lora' is already on this model"):
        attach_lora(model, LoraConfig())
    with pytest.raises(UserError, match=r"no adapter named 'lara' on this model; did you mean 'lora'\?"):
        unload_lora(model, "lara")
    with pytest.raises(UserError, match="no adapters are merged"):
        unmerge_lora(model)
    adapter.interval = (0.0, 0.5)
    with pytest.raises(UserError, match=r"'lora' acts at some noise levels alone.*set its interval to None"):
        merge_lora(model)
    adapter.interval = None
    merge_lora(model)
    with pytest.raises(UserError, match="'lora' is merged into the weights; call unmerge_lora before changing it"):
        adapter.strength = 0.5
    for change in (lambda: merge_lora(model), lambda: unload_lora(model)):
        with pytest.raises(UserError, match="call unmerge_lora first"):
            change()


def _bare(model: nn.Module) -> Layered:
    bare = Layered().to(next(model.parameters()).dtype)
    bare.load_state_dict(model.state_dict())
    return bare
