"""The stack of layers: causality by gradient, cache, early exit, masks, recomputed activations, state-dict names."""

import pytest
import torch
from torch import nn

from stable_audio_tools.models.transformer import (
    ContinuousTransformer,
    FeedForward,
    KeyValueCache,
    LayerNorm,
    TransformerBlock,
)


def stack(**options):
    torch.manual_seed(0)
    defaults = {"dim": 32, "depth": 3, "dim_heads": 16, "zero_init_branch_outputs": False}
    return ContinuousTransformer(**{**defaults, **options}).double().eval()


def signal(length, width=32, seed=0):
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def depends_on(model, length, output, **inputs):
    """Input positions that the output at a position depends on."""
    x = signal(length).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, **inputs)[:, output].sum(), x)
    return gradient.abs().sum(dim=(0, 2)).nonzero()[:, 0].tolist()


def test_a_causal_stack_sees_the_past_alone():
    assert depends_on(stack(causal=True), 12, 5) == list(range(6))
    assert depends_on(stack(), 12, 5) == list(range(12))


def test_a_window_widens_with_every_layer():
    assert depends_on(stack(sliding_window=[2, 1]), 30, 15) == list(range(15 - 3 * 2, 15 + 3 * 1 + 1))
    assert depends_on(stack(sliding_window=[-1, 0]), 9, 4) == list(range(5))
    assert depends_on(stack(sliding_window=[2, 4], causal=True), 20, 10) == list(range(4, 11))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_memory_tokens": 3},
        {"sliding_window": [4, 0]},
        {"use_sinusoidal_emb": True},
        {"use_abs_pos_emb": True, "rotary_pos_emb": False},
        {"rotary_pos_emb": False, "add_rope": True},
        {"attn_kwargs": {"differential": True, "qk_norm": "ln"}},
    ],
    ids=str,
)
def test_a_cache_gives_the_same_outputs(options):
    model = stack(causal=True, cross_attend=True, cond_token_dim=16, **options)
    x, prepended, context = signal(12), signal(3, seed=1), signal(5, 16, seed=2)
    with torch.no_grad():
        whole = model(x, prepend_embeds=prepended, context=context)
        cache = KeyValueCache()
        parts = [model(x[:, :4], prepend_embeds=prepended, context=context, cache=cache)]
        parts += [model(x[:, start:end], context=context, cache=cache) for start, end in [(4, 5), (5, 9), (9, 12)]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert cache.length == 12 + 3 + options.get("num_memory_tokens", 0)


def test_a_cache_serves_its_context_without_projecting_again():
    model = stack(causal=True, cross_attend=True, cond_token_dim=16)
    with torch.no_grad():
        cache = KeyValueCache()
        model(signal(4), context=signal(5, 16), cache=cache)
        kept = cache.context
        model(signal(1), context=signal(5, 16), cache=cache)
    assert cache.context is kept and len(kept) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "`causal` is false"),
        ({"causal": True, "conformer": True}, "conformer convolutions look ahead"),
        ({"causal": True, "ff_kwargs": {"use_conv": True}}, "`use_conv` looks ahead"),
        ({"causal": True, "attn_kwargs": {"feat_scale": True}}, "`feat_scale` takes the mean over time"),
    ],
)
def test_a_cache_needs_a_causal_stack(options, reason):
    with torch.no_grad(), pytest.raises(ValueError, match=f"a key-value cache needs a causal transformer.*{reason}"):
        stack(**options)(signal(4), cache=KeyValueCache())


def test_wrong_use_of_a_cache():
    model, cache = stack(causal=True), KeyValueCache()
    with torch.no_grad():
        model(signal(4), cache=cache)
        with pytest.raises(ValueError, match="this cache holds 3 layers, the transformer has 2"):
            stack(causal=True, depth=2)(signal(1), cache=cache)
    with pytest.raises(ValueError, match="cannot carry gradients"):
        model(signal(1), cache=cache)


@pytest.mark.parametrize("options", [{}, {"num_memory_tokens": 2}, {"sliding_window": [4, 0]}], ids=str)
def test_a_cache_remembers_what_is_masked(options):
    model, x, prepended = stack(causal=True, **options), signal(8), signal(3, seed=1)
    masks = {"prepend_mask": torch.tensor([[True, True, False], [True, False, False]])}
    with torch.no_grad():
        cache = KeyValueCache()
        parts = [model(x[:, :2], prepend_embeds=prepended, cache=cache, **masks)]
        parts += [model(x[:, step : step + 1], cache=cache) for step in range(2, 8)]
        whole = model(x, prepend_embeds=prepended, **masks)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_masked_positions_are_not_seen():
    model, x, prepended = stack(num_memory_tokens=2), signal(8), signal(3, seed=1)
    mask, prepend_mask = torch.arange(8) < 6, torch.tensor([True, False, True])
    masks = {"mask": mask.expand(2, -1), "prepend_mask": prepend_mask.expand(2, -1)}
    before = model(x, prepend_embeds=prepended, **masks)
    x[:, 6:], prepended[:, 1] = 9.0, 9.0
    after = model(x, prepend_embeds=prepended, **masks)
    seen = torch.cat([prepend_mask, mask])
    torch.testing.assert_close(after[:, seen], before[:, seen])
    assert not torch.allclose(model(x, prepend_embeds=prepended)[:, seen], before[:, seen])


def test_a_masked_context_equals_a_shorter_one():
    model, x, context = stack(cross_attend=True, cond_token_dim=16), signal(8), signal(5, 16, seed=1)
    mask = (torch.arange(5) < 3).expand(2, -1)
    torch.testing.assert_close(model(x, context=context, context_mask=mask), model(x, context=context[:, :3]))


def test_an_early_exit_returns_that_layers_state():
    model, x = stack(num_memory_tokens=2, dim_out=8), signal(6)
    output, info = model(x, return_info=True)
    assert output.shape == (2, 6, 8) and [len(state[0]) for state in info["hidden_states"]] == [8, 8, 8]
    torch.testing.assert_close(model(x, exit_layer_ix=1), info["hidden_states"][1][:, 2:])


def test_the_last_layers_do_not_cross_attend():
    model = stack(cross_attend=True, cond_token_dim=16, final_cross_attn_ix=0)
    assert [hasattr(layer, "cross_attn") for layer in model.layers] == [True, False, False]
    assert [pair is None for pair in model.project_context(signal(4, 16))] == [False, True, True]


def count_runs(model):
    runs = []
    model.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_activations_are_recomputed_only_when_asked_and_only_for_gradients(monkeypatch):
    x = signal(6)
    plain = stack()
    runs = count_runs(plain)
    plain(x).sum().backward()
    assert len(runs) == 1

    model = stack(checkpointing=True)
    runs = count_runs(model)
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr("stable_audio_tools.models.transformer.continuous.checkpoint", None)
        model(x)
    assert len(runs) == 1
    model(x, use_checkpointing=False).sum().backward()
    assert len(runs) == 2
    model.zero_grad()
    model(x).sum().backward()
    assert len(runs) == 4
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_adaptive_layouts():
    shared = stack(global_cond_dim=12)
    assert shared.layers[0].to_scale_shift_gate.shape == (6 * 32,) and shared.global_cond_embedder is not None
    per_layer = stack(global_cond_dim=12, adaln_layout="per_layer")
    names = [name for name, _ in per_layer.named_parameters() if "to_scale_shift_gate" in name]
    assert names == [f"layers.{index}.to_scale_shift_gate.1.weight" for index in range(3)]
    assert per_layer.layers[0].to_scale_shift_gate[1].weight.shape == (6 * 32, 12)
    assert not any("global_cond_embedder" in name for name in per_layer.state_dict())


def test_the_layouts_agree_where_they_can():
    """Per-layer projections of a condition equal shared vectors that hold the same numbers."""
    per_layer, shared = stack(global_cond_dim=12, adaln_layout="per_layer"), stack(global_cond_dim=12)
    shared.load_state_dict(per_layer.state_dict(), strict=False)
    with torch.no_grad():
        condition = signal(1, 12)[:, 0]
        for ours, theirs in zip(shared.layers, per_layer.layers):
            nn.init.normal_(theirs.to_scale_shift_gate[1].weight)
            ours.to_scale_shift_gate.copy_(theirs.to_scale_shift_gate(condition[:1])[0])
        for parameter in shared.global_cond_embedder.parameters():
            parameter.zero_()
        x, condition = signal(5)[:1], condition[:1]
        torch.testing.assert_close(shared(x, global_cond=condition), per_layer(x, global_cond=condition))


def test_zero_initialised_branches_start_as_the_identity():
    x = signal(5)
    assert torch.equal(stack(zero_init_branch_outputs=True, cross_attend=True, cond_token_dim=16)(x), x)
    assert not torch.equal(stack(zero_init_branch_outputs=True, layer_scale=True)(x), x)


def test_small_heads_rotate_whole():
    assert len(stack(dim_heads=8).rotary_pos_emb.inv_freq) == 4
    assert len(stack(dim=128, dim_heads=128).rotary_pos_emb.inv_freq) == 32
    assert len(stack(dim=64, dim_heads=64).rotary_pos_emb.inv_freq) == 16


def test_published_constructors_take_their_keywords():
    TransformerBlock(
        32,
        dim_heads=16,
        causal=False,
        zero_init_branch_outputs=False,
        remove_norms=False,
        conformer=True,
        layer_scale=True,
        add_rope=True,
        attn_kwargs={"qk_norm": "ln"},
        ff_kwargs={"mult": 4, "no_bias": False},
        norm_kwargs={"eps": 1e-2},
    )
    assert FeedForward(8, dim_out=6, mult=2, glu=False)(torch.zeros(1, 3, 8)).shape == (1, 3, 6)
    assert sorted(LayerNorm(4, bias=True, fix_scale=True).state_dict()) == ["beta", "gamma"]
    assert [name for name, _ in LayerNorm(4, bias=True, fix_scale=True).named_parameters()] == ["beta"]


def test_mistakes():
    with pytest.raises(ValueError, match="prepended tokens have width 16, the transformer 32"):
        stack()(signal(4), prepend_embeds=signal(2, 16))
    with pytest.raises(ValueError, match="conv_kernel_size is 4; it must be odd"):
        FeedForward(8, use_conv=True, conv_kernel_size=4)


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        model = ContinuousTransformer(64, 2, num_memory_tokens=2, use_sinusoidal_emb=True, global_cond_dim=8)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    # What is not in a state dict could not be filled from one.
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())
