"""Kernels of attention: each equals the definition, within a window too, and says when it cannot."""

import itertools
import logging
import math

import pytest
import torch
from support.fake_cuda import FakeCuda
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from stable_audio_tools.core.errors import MissingPackage
from stable_audio_tools.models.transformer.backends import (
    AttentionBackend,
    FlashAttention,
    FlexAttention,
    Reach,
    ScaledDotProduct,
    _band,
    attention_backend,
    flex_blocks,
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


@pytest.mark.parametrize(
    ("queries", "keys", "reach"), [(33, 47, Reach(5, 3)), (40, 40, Reach(0, 0)), (47, 47, Reach(9, 0))]
)
def test_stretches_equal_the_whole(queries, keys, reach, monkeypatch):
    monkeypatch.setattr(ScaledDotProduct, "in_one_call", ("cpu",))
    monkeypatch.setattr(ScaledDotProduct, "smallest_block", 4)
    q, k, v = heads(queries, keys)
    torch.testing.assert_close(ScaledDotProduct().attend(q, k, v, reach, None), by_definition(q, k, v, reach))


def test_gradients_pass_through_stretches(monkeypatch):
    monkeypatch.setattr(ScaledDotProduct, "in_one_call", ("cpu",))
    monkeypatch.setattr(ScaledDotProduct, "smallest_block", 4)
    grads = []
    for attend in (ScaledDotProduct().attend, by_definition):
        q, k, v = (x.requires_grad_() for x in heads(33, 33))
        attend(q, k, v, Reach(3, 2), None).square().sum().backward()
        grads.append((q.grad, k.grad, v.grad))
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reach", [Reach(3, 2), Reach(5, 0), Reach(2, None)])
def test_flex_equals_sdpa(reach, monkeypatch):
    monkeypatch.setattr(FlexAttention, "shortest", 1)
    kernel = FlexAttention(flex_attention, devices=("cpu",))
    q, k, v = heads(20, 24, dtype=torch.float32)
    assert kernel.fits(q, k, reach, None)
    # float32: the kernels sum in different orders.
    torch.testing.assert_close(kernel.attend(q, k, v, reach, None), ScaledDotProduct().attend(q, k, v, reach, None))


@pytest.mark.parametrize(("queries", "keys"), [(256, 256), (300, 300), (200, 333)])
@pytest.mark.parametrize("reach", [Reach(63, 64), Reach(200, 0), Reach(130, None)])
def test_blocks_of_flex_are_those_of_pytorch(queries, keys, reach):
    """PyTorch builds the same from a table of all pairs."""
    blocks = flex_blocks(queries, keys, reach, torch.device("cpu"))
    seen = _band(queries, keys, keys - queries, reach, torch.device("cpu"))
    whole = create_block_mask(blocks.mask_mod, None, None, queries, keys, device="cpu")
    assert torch.equal(blocks.to_dense(), whole.to_dense())
    assert blocks.full_kv_num_blocks is not None
    assert bool((blocks.full_kv_num_blocks <= whole.full_kv_num_blocks + 1).all())
    shown = torch.zeros(blocks.to_dense().shape[-2] * 128, blocks.to_dense().shape[-1] * 128, dtype=torch.bool)
    shown[:queries, :keys] = seen
    full = _dense(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    rows_of_real_queries = queries // 128
    for row, column in full[:rows_of_real_queries].nonzero().tolist():
        assert shown[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128].all()


def _dense(counts, indices):
    dense = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, count in enumerate(counts[0, 0].tolist()):
        dense[row, indices[0, 0, row, :count].long()] = True
    return dense


def test_flex_that_does_not_compile_is_named_and_replaced(caplog, monkeypatch):
    monkeypatch.setattr(FlexAttention, "shortest", 1)

    def refuses(*args, **kwargs):
        raise torch._dynamo.exc.Unsupported("no compiler")

    kernel = FlexAttention(refuses, devices=("cpu",))
    q, k, v = heads(20, 20, dtype=torch.float32)
    for _ in range(2):
        torch.testing.assert_close(
            kernel.attend(q, k, v, Reach(3, 2), None), ScaledDotProduct().attend(q, k, v, Reach(3, 2), None)
        )
    named = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert named == ["attention: FlexAttention cannot compile windows (no compiler); SDPA takes its place"]


def test_a_window_is_linear_in_length_on_a_gpu():
    """One level of a transformer autoencoder; all pairs of 20,000 positions would be 400 MB as booleans alone."""
    peaks = []
    for length in (10_000, 20_000):
        with FakeCuda() as gpu, torch.no_grad():
            q, k, v = (torch.empty(1, 2, length, 64, device="cuda", dtype=torch.float16) for _ in range(3))
            before = gpu.held_bytes
            attention_backend().attend(q, k, v, Reach(63, 64))
            peaks.append(gpu.peak_bytes - before)
    assert peaks[1] < 2.2 * peaks[0] < 2.2 * 100 * 2**20


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
