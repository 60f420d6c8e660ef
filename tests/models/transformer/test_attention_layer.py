"""The attention layer: against torch's own, grouped heads, norms, differential maps, projected contexts."""

import pytest
import torch
from torch import nn

from stable_audio_tools.models.transformer import Attention, RotaryEmbedding
from stable_audio_tools.models.transformer.attention import context_widths


def layer(*args, **options):
    torch.manual_seed(0)
    made = Attention(*args, **{"zero_init_output": False, **options}).double().eval()
    for parameter in made.parameters():  # so that norms and feature scales do something
        nn.init.normal_(parameter, std=0.3)
    return made


def signal(length, width, seed=0):
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torchs_own(ours):
    theirs = nn.MultiheadAttention(ours.dim, ours.num_heads, bias=False, batch_first=True).double()
    projections = [ours.to_q.weight, ours.to_kv.weight] if ours.is_cross else [ours.to_qkv.weight]
    with torch.no_grad():
        theirs.out_proj.weight.copy_(ours.to_out.weight)
        theirs.in_proj_weight.copy_(torch.cat(projections))
    return theirs


def test_self_attention_equals_torchs_own():
    ours, x = layer(64, dim_heads=16), signal(7, 64)
    torch.testing.assert_close(ours(x), torchs_own(ours)(x, x, x)[0])


def test_causal_self_attention_equals_torchs_own():
    ours, x = layer(64, dim_heads=16, causal=True), signal(7, 64)
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x), torchs_own(ours)(x, x, x, attn_mask=hidden)[0])


def test_cross_attention_equals_torchs_own():
    ours, x, context = layer(64, dim_heads=16, dim_context=64), signal(7, 64), signal(5, 64, 1)
    torch.testing.assert_close(ours(x, context), torchs_own(ours)(x, context, context)[0])


def test_a_narrow_context_equals_a_wide_one_with_repeated_heads():
    """Query heads 0 and 1 share the first key-value head, 2 and 3 the second."""
    narrow, x, context = layer(64, dim_heads=16, dim_context=32), signal(7, 64), signal(5, 32, 1)
    key, value = narrow.project_context(context)
    assert key.shape == value.shape == (2, 4, 5, 16)
    torch.testing.assert_close(key[:, 0], key[:, 1])
    torch.testing.assert_close(value[:, 2], value[:, 3])
    assert not torch.equal(key[:, 1], key[:, 2])
    torch.testing.assert_close(narrow(x, context), narrow(x, key_value=narrow.project_context(context)))


@pytest.mark.parametrize("qk_norm", ["none", "l2", "ln", "dyt"])
@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize("feat_scale", [False, True])
def test_a_projected_context_changes_nothing(qk_norm, differential, feat_scale):
    ours = layer(64, 16, 32, qk_norm=qk_norm, differential=differential, feat_scale=feat_scale)
    x, context = signal(7, 64), signal(5, 32, 1)
    assert torch.equal(ours(x, context), ours(x, key_value=ours.project_context(context)))


def test_a_second_map_equal_to_the_first_cancels_it():
    ours, x = layer(32, dim_heads=16, differential=True), signal(6, 32)
    with torch.no_grad():
        q, k, v, _, _ = ours.to_qkv.weight.chunk(5)
        ours.to_qkv.weight.copy_(torch.cat([q, k, v, q, k]))
    torch.testing.assert_close(ours(x), torch.zeros_like(x))


def test_feature_scales_weigh_mean_and_deviation():
    ours, x = layer(32, dim_heads=16, feat_scale=True), signal(6, 32)
    with torch.no_grad():
        ours.lambda_dc.zero_()
        ours.lambda_hf.zero_()
        plain = ours(x)
        ours.lambda_dc.fill_(1.0)
        torch.testing.assert_close(ours(x), plain + plain.mean(1, keepdim=True))


def test_l2_norms_make_scores_independent_of_length():
    ours, x = layer(32, dim_heads=16, qk_norm="l2"), signal(6, 32)
    before = ours(x)
    with torch.no_grad():
        ours.to_qkv.weight[:64] *= 7  # queries and keys, not values
    torch.testing.assert_close(ours(x), before)


def test_true_means_l2():
    assert layer(32, 16, qk_norm=True).qk_norm == "l2"
    assert layer(32, 16, qk_norm=False).qk_norm == "none"


def test_rotary_attention_depends_on_distances_alone():
    ours, x = layer(32, dim_heads=16), signal(6, 32)
    table = RotaryEmbedding(16).double()
    here = ours(x, rotary_pos_emb=table.forward_from_seq_len(6))
    far = ours(x, rotary_pos_emb=table.forward_from_seq_len(6, start=40))
    # Angles are float32 numbers of up to 45 radians.
    torch.testing.assert_close(here, far, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(here, ours(x), atol=1e-3)


def test_half_precision_norms_keep_the_dtype():
    ours, x = layer(32, dim_heads=16, qk_norm="ln").bfloat16(), signal(6, 32).bfloat16()
    assert ours(x, rotary_pos_emb=RotaryEmbedding(8).forward_from_seq_len(6)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 30, "dim_heads": 16}, "width 30 does not divide into heads of 16"),
        ({"dim": 64, "dim_heads": 16, "dim_context": 24}, "context of width 24 .* allowed widths: 16, 32, 64"),
        ({"dim": 64, "dim_heads": 16, "dim_context": 48}, "context of width 48 .* allowed widths: 16, 32, 64"),
        ({"dim": 32, "dim_heads": 16, "dim_context": 64}, "context of width 64"),
        ({"dim": 32, "dim_heads": 16, "qk_norm": "batch"}, "qk_norm is 'batch'; allowed: none, l2, ln, rms, dyt"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(**arguments)


def test_allowed_context_widths_build():
    for width in context_widths(96, 8):
        Attention(96, 8, width)
