"""The diffusion transformer where no recorded figure reaches: new options, shapes, gradients, mistakes."""

import pytest
import torch
from torch import nn

from stable_audio_tools.models.dit import DiffusionTransformer

T = torch.tensor([0.3, 0.8])


def dit(**options):
    torch.manual_seed(0)
    model = DiffusionTransformer(
        **{"io_channels": 3, "embed_dim": 32, "depth": 2, "num_heads": 2, "zero_init_branch_outputs": False, **options}
    )
    nn.init.normal_(model.postprocess_conv.weight)
    return model.double().eval()


def signal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("global_cond_type", ["prepend", "adaLN"])
@pytest.mark.parametrize("global_cond_dim", [0, 8])
def test_the_noise_level_as_input_channels(global_cond_type, global_cond_dim):
    model = dit(
        timestep_cond_type="input_concat",
        timestep_embed_dim=5,
        global_cond_type=global_cond_type,
        global_cond_dim=global_cond_dim,
    )
    assert model.preprocess_conv.weight.shape == (8, 8, 1)
    condition = {"global_embed": signal(2, 8)} if global_cond_dim else {}
    x = signal(2, 3, 12)
    out = model(x, T, **condition)
    assert out.shape == x.shape and not torch.allclose(out, model(x, T.flip(0), **condition))
    if global_cond_dim:
        assert not torch.allclose(out, model(x, T, global_embed=signal(2, 8, seed=1)))


def test_the_noise_level_reaches_every_frame_alike():
    """With one token per frame, without positions and attention to others, all frames of a constant input agree."""
    model = dit(timestep_cond_type="input_concat", timestep_embed_dim=5, rotary_pos_emb=False, sliding_window=[0, 0])
    out = model(torch.ones(2, 3, 6, dtype=torch.float64), T)
    torch.testing.assert_close(out, out[..., :1].expand_as(out))


@pytest.mark.parametrize("patch_size", [1, 4])
def test_a_causal_model_predicts_from_the_past(patch_size):
    model, x = dit(causal=True, patch_size=patch_size), signal(2, 3, 24).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, T)[..., 9].sum(), x)
    last = 9 // patch_size * patch_size + patch_size - 1
    assert gradient.abs().sum(dim=(0, 1)).nonzero().max() == last


def test_causal_cross_attention_is_a_choice():
    def first_frame_sees(model):
        context = signal(2, 6, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(model(signal(2, 3, 5), T, cross_attn_cond=context)[..., 0].sum(), context)
        return gradient.abs().sum(dim=(0, 2)).nonzero()[:, 0].tolist()

    shared = {"causal": True, "cond_token_dim": 8, "global_cond_type": "adaLN"}  # no token before the first frame
    assert first_frame_sees(dit(**shared)) == [0]
    assert first_frame_sees(dit(**shared, causal_cross_attention=False)) == [0, 1, 2, 3, 4, 5]


def test_token_masks_are_honoured_on_request():
    x, context = signal(2, 3, 12), signal(2, 5, 8)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    padded = torch.where(mask.bool()[..., None], context, 9.0)

    plain = dit(cond_token_dim=8)
    assert torch.equal(
        plain(x, T, cross_attn_cond=context), plain(x, T, cross_attn_cond=context, cross_attn_cond_mask=mask)
    )
    model = dit(cond_token_dim=8, use_cross_attn_mask=True)
    out = model(x, T, cross_attn_cond=context, cross_attn_cond_mask=mask)
    torch.testing.assert_close(model(x, T, cross_attn_cond=padded, cross_attn_cond_mask=mask), out)
    torch.testing.assert_close(model(x[:1], T[:1], cross_attn_cond=context[:1, :2]), out[:1])
    guided = model(x, T, cross_attn_cond=context, cross_attn_cond_mask=mask, cfg_scale=1.5)
    torch.testing.assert_close(model(x, T, cross_attn_cond=padded, cross_attn_cond_mask=mask, cfg_scale=1.5), guided)


def test_a_condition_that_is_all_padding_is_seen_whole():
    model, context = dit(cond_token_dim=8, use_cross_attn_mask=True), signal(2, 5, 8)
    x, none = signal(2, 3, 12), torch.zeros(2, 5, dtype=torch.bool)
    out = model(x, T, cross_attn_cond=context, cross_attn_cond_mask=none)
    torch.testing.assert_close(out, model(x, T, cross_attn_cond=context))


def test_padding_masks_are_honoured_on_request():
    x, prepended = signal(2, 3, 12), signal(2, 3, 8)
    mask, prepend_mask = torch.arange(12).expand(2, -1) < 8, torch.tensor([1, 0, 1]).expand(2, -1)
    model = dit(use_padding_mask=True, patch_size=2, prepend_cond_dim=8)
    inputs = {"mask": mask, "prepend_cond_mask": prepend_mask}
    before = model(x, T, prepend_cond=prepended, **inputs)
    x[..., 8:], prepended[:, 1] = 9.0, 9.0
    torch.testing.assert_close(model(x, T, prepend_cond=prepended, **inputs)[..., :8], before[..., :8])
    assert not torch.allclose(model(x, T, prepend_cond=prepended)[..., :8], before[..., :8])


def test_friendlys_adaptive_layout():
    model = dit(global_cond_type="adaLN", adaln_layout="per_layer", attn_kwargs={"qk_norm": True})
    assert model.state_dict()["transformer.layers.1.to_scale_shift_gate.1.weight"].shape == (6 * 32, 32)
    nn.init.normal_(model.transformer.layers[1].to_scale_shift_gate[1].weight)
    x = signal(2, 3, 12)
    assert not torch.allclose(model(x, T), model(x, T.flip(0)))


def test_all_parameters_learn():
    model = dit(
        cond_token_dim=8,
        global_cond_dim=6,
        prepend_cond_dim=4,
        input_concat_dim=2,
        num_memory_tokens=2,
        conformer=True,
        global_cond_type="adaLN",
        attn_kwargs={"differential": True, "feat_scale": True, "qk_norm": "ln"},
    ).train()
    out = model(
        signal(2, 3, 12),
        T,
        cross_attn_cond=signal(2, 5, 8),
        global_embed=signal(2, 6),
        prepend_cond=signal(2, 3, 4),
        input_concat_cond=signal(2, 2, 12),
    )
    out.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_and_gives_what_the_weights_are(dtype):
    model = dit(cond_token_dim=8, global_cond_dim=6).to(dtype)
    out = model(signal(2, 3, 12), T, cross_attn_cond=signal(2, 5, 8), global_embed=signal(2, 6), cfg_scale=3.0)
    assert out.dtype == dtype and out.isfinite().all()


def test_dropped_conditions_are_drawn_per_item():
    model = dit(cond_token_dim=8, prepend_cond_dim=4)
    x, context, prepended = signal(1, 3, 6).expand(64, -1, -1), signal(1, 5, 8), signal(1, 2, 4)
    torch.manual_seed(0)
    inputs = {"cross_attn_cond": context.expand(64, -1, -1), "prepend_cond": prepended.expand(64, -1, -1)}
    out = model(x, T[:1].expand(64), **inputs, cfg_dropout_prob=0.5)
    # Two independent coins: four different outputs.
    assert len(torch.unique((out[:, 0, 0] * 1e6).round())) == 4


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, {"x": signal(2, 4, 12)}, r"input of shape \(2, 4, 12\); expected \(batch, 3 channels, frames\)"),
        ({"patch_size": 5}, {}, "input of 12 frames; patch_size is 5, so use 10 or 15"),
        ({}, {"cross_attn_cond": signal(2, 5, 8)}, "cond_token_dim is 0, and a condition of width 8 was given"),
        ({"global_cond_dim": 6}, {"global_embed": signal(2, 8)}, "global_cond_dim is 6, and a condition of width 8"),
        ({"prepend_cond_dim": 6}, {"prepend_cond": signal(2, 1, 8)}, "prepend_cond_dim is 6, .* width 8"),
        ({"input_concat_dim": 2}, {"input_concat_cond": signal(2, 3, 12)}, "input_concat_dim is 2, .* width 3"),
        ({"input_concat_dim": 2}, {}, "input_concat_dim is 2, and no such condition was given"),
        ({}, {"causal": True}, "set causal in the config"),
    ],
)
def test_wrong_inputs(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        dit(**options)(**{"x": signal(2, 3, 12), "t": T, **inputs})


def test_wrong_options():
    with pytest.raises(ValueError, match="embed_dim is 32; it must be a multiple of num_heads, which is 5"):
        dit(num_heads=5)
    with pytest.raises(ValueError, match="timestep_embed_dim: needed"):
        dit(timestep_cond_type="input_concat")
