"""Kernels of attention: each equals the definition, within a window too, and says when it cannot."""

import itertools
import logging
import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from stable_audio_tools.core.errors import MissingPackage
from stable_audio_tools.models.transformer.backends import (
    AttentionBackend,
    FlashAttention,
    FlexAttention,
    Reach,
    ScaledDotProduct,
    _band,
    attention_backend,
    use_attention_backend,
)

REACHES = [Reach(), Reach(None, 0), Reach(3, 2), Reach(5, 0), Reach(None, 1), Reach(0, 0), Reach(2, None)]


def by_definition(q, k, v, reach, mask=None):
    """Softmax attention, one query at a time."""
    rows = []
    for i in range(q.shape[-2]):
        here = i + reach.shift(q, k)
        seen = [
            j
            for j in range(k.shape[-2])
            if (reach.before is None or j >= here - reach.before) and (reach.after is None or j <= here + reach.after)
        ]
        scores = (q[..., i, None, :] * k[..., seen, :]).sum(-1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, seen], -torch.inf)
        rows.append((scores.softmax(-1)[..., None] * v[..., seen, :]).sum(-2))
    return torch.stack(rows, dim=-2)


def heads(queries, keys, width=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, n, width, generator=generator, dtype=dtype) for n in (queries, keys, keys))


@pytest.mark.parametrize(("reach", "queries"), itertools.product(REACHES, [1, 4, 9]))
def test_sdpa_equals_the_definition(reach, queries):
    q, k, v = heads(queries, 9)
    torch.testing.assert_close(ScaledDotProduct().attend(q, k, v, reach, None), by_definition(q, k, v, reach))


def test_a_reach_can_start_at_the_first_key():
    q, k, v = heads(9, 4)
    reach = Reach(None, 0, first=0)
    torch.testing.assert_close(ScaledDotProduct().attend(q, k, v, reach, None), by_definition(q, k, v, reach))


@pytest.mark.parametrize("reach", [Reach(), Reach(None, 0), Reach(3, 2)])
def test_sdpa_hides_masked_keys(reach):
    q, k, v = heads(9, 9)
    mask = torch.arange(9).expand(2, -1) != torch.tensor([[4], [2]])
    torch.testing.assert_close(ScaledDotProduct().attend(q, k, v, reach, mask), by_definition(q, k, v, reach, mask))


@pytest.mark.parametrize("queries", [33, 40, 47])
def test_blocks_equal_the_whole(queries, monkeypatch):
    monkeypatch.setattr(ScaledDotProduct, "smallest_block", 4)
    q, k, v = heads(queries, 47)
    mask = torch.rand(2, 47, generator=torch.Generator().manual_seed(1)) < 0.9
    mask |= torch.arange(47) % 3 == 0  # no window without a single key
    reach = Reach(5, 3)
    torch.testing.assert_close(ScaledDotProduct().attend(q, k, v, reach, mask), by_definition(q, k, v, reach, mask))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reach", [Reach(3, 2), Reach(5, 0), Reach(2, None)])
def test_flex_equals_sdpa(reach, monkeypatch):
    monkeypatch.setattr(FlexAttention, "shortest", 1)
    kernel = FlexAttention(flex_attention, devices=("cpu",))
    q, k, v = heads(20, 24, dtype=torch.float32)
    assert kernel.fits(q, k, reach, None)
    # float32: the kernels sum in different orders.
    torch.testing.assert_close(kernel.attend(q, k, v, reach, None), ScaledDotProduct().attend(q, k, v, reach, None))


def flash_by_its_documentation(q, k, v, causal, window_size):
    """flash_attn_func: heads after time; -1 is without limit; windows end at the last key; causal sees none after."""
    before, after = (None if side < 0 else side for side in window_size)
    turned = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return by_definition(*turned, Reach(before, 0 if causal else after)).transpose(1, 2)


@pytest.mark.parametrize("reach", REACHES)
def test_flash_is_asked_for_the_same(reach):
    kernel = FlashAttention(flash_by_its_documentation, devices=("cpu",))
    q, k, v = heads(6, 9)
    torch.testing.assert_close(kernel.attend(q, k, v, reach, None), ScaledDotProduct().attend(q, k, v, reach, None))


def test_flash_does_not_fit_single_precision_masks_and_moved_queries():
    kernel = FlashAttention(flash_by_its_documentation, devices=("cpu",))
    q, k, _ = heads(6, 6, dtype=torch.bfloat16)
    assert kernel.fits(q, k, Reach(3, 2), None)
    assert not kernel.fits(q.float(), k.float(), Reach(3, 2), None)
    assert not kernel.fits(q, k, Reach(3, 2), torch.ones(2, 6, dtype=torch.bool))
    assert not kernel.fits(q, k, Reach(None, 0, first=0), None)


def test_a_call_goes_to_the_first_kernel_that_fits():
    class Marked(ScaledDotProduct):
        def fits(self, q, k, reach, mask):
            return mask is None

        def attend(self, q, k, v, reach, mask):
            return torch.zeros_like(q)

    backend = AttentionBackend([Marked()])
    q, k, v = heads(4, 4)
    assert not backend.attend(q, k, v).any()
    assert backend.attend(q, k, v, mask=torch.ones(2, 4, dtype=torch.bool)).any()


def test_masks_kept_from_inference_serve_training():
    """Autograd refuses to save tensors that were made in inference mode."""
    with torch.inference_mode():
        band = _band(7, 7, 0, Reach(2, 1), torch.device("cpu"))
    assert not band.is_inference() and band is _band(7, 7, 0, Reach(2, 1), torch.device("cpu"))


@pytest.fixture
def restored():
    yield
    use_attention_backend("auto")


def test_the_backend_is_chosen_and_named_once(caplog, restored):
    use_attention_backend("sdpa")
    with caplog.at_level(logging.INFO, logger="stable_audio_tools"):
        assert attention_backend() is attention_backend()
    assert [record.getMessage() for record in caplog.records] == ["attention: SDPA"]


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"no attention backend named 'xformers'; allowed: auto, sdpa, flash, flex"):
        use_attention_backend("xformers")


def test_a_missing_backend_says_how_to_install_it(restored, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", None)
    use_attention_backend("flash")
    with pytest.raises(MissingPackage, match="flash-attn"):
        attention_backend()
