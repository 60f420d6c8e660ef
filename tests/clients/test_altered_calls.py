"""Other people's code that replaces, wraps or hooks the modules of a network acts in every step of sampling."""

import pytest
import torch
from support.small_diffusion import make, model_config
from torch import nn

from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.transformer import Attention, ContinuousTransformer, TransformerBlock

STEPS = 4
PARTS = {
    "wrapper": lambda model: model.model,
    "dit": lambda model: model.model.model,
    "transformer": lambda model: model.model.model.transformer,
    "block": lambda model: model.model.model.transformer.layers[0],
    "self_attn": lambda model: model.model.model.transformer.layers[0].self_attn,
    "cross_attn": lambda model: model.model.model.transformer.layers[0].cross_attn,
    "to_kv": lambda model: model.model.model.transformer.layers[0].cross_attn.to_kv,
    "to_cond_embed": lambda model: model.model.model.to_cond_embed,
}


@pytest.fixture
def model():
    config = model_config("rectified_flow")
    return make(config)


def generate(model, **options):
    options = {"sampler_type": "euler", "cfg_scale": 3.0, **options}
    prompt = [{"mood": "calm", "tempo": 90}]
    return generate_diffusion_cond(
        model, steps=STEPS, conditioning=prompt, sample_size=256, seed=1, device="cpu", **options
    )


class Passing(nn.Module):
    """A module that other code puts around a network: it knows nothing of ours but the call."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.inner(*args, **kwargs)


@pytest.fixture(params=list(PARTS))
def part(request):
    return request.param


def test_forward_hooks_fire_in_every_step(model, part):
    plain, calls = generate(model), []
    PARTS[part](model).register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert len(calls) == STEPS


def test_what_a_hook_returns_counts(model, part):
    plain = generate(model)
    handle = PARTS[part](model).register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    assert (generate(model) - plain).abs().max() > 1e-4
    handle.remove()
    assert torch.equal(generate(model), plain)


def test_a_replaced_forward_is_called_in_every_step(model, part):
    plain, calls = generate(model), []
    module = PARTS[part](model)
    original = module.forward

    def forward(x, *args, **kwargs):
        calls.append(1)
        return original(x, *args, **kwargs)

    module.forward = forward
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert len(calls) == STEPS


def test_a_forward_replaced_between_two_steps_acts_from_there_on(model):
    calls = []
    dit = model.model.model
    original = dit.forward

    def late(x, t, **kwargs):
        calls.append(float(t[0]))
        return original(x, t, **kwargs)

    def watch(step):
        if step["step"] == 2:
            dit.forward = late

    generate(model, callback=watch)
    assert len(calls) == STEPS - 2


@pytest.mark.parametrize(
    "owner, name",
    [
        ("model", "model"),
        ("dit", "model"),
        ("transformer", "transformer"),
        ("block", "0"),
        ("cross_attn", "cross_attn"),
    ],
)
def test_a_network_inside_another_module_generates_the_same(model, owner, name):
    owners = {
        "model": model,
        "dit": model.model,
        "transformer": model.model.model,
        "block": model.model.model.transformer.layers,
        "cross_attn": model.model.model.transformer.layers[0],
    }
    plain = generate(model)
    around = Passing(getattr(owners[owner], name))
    setattr(owners[owner], name, around)
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert around.calls == STEPS


@pytest.mark.parametrize("kind", [DiffusionTransformer, ContinuousTransformer, TransformerBlock, Attention])
def test_a_forward_replaced_on_the_class_is_called(model, kind, monkeypatch):
    plain, calls, original = generate(model), [], kind.forward

    def forward(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert len(calls) == STEPS * (2 if kind is Attention else 1)


def test_a_compiled_network_is_the_one_that_runs(model):
    plain, graphs = generate(model), []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model.model = torch.compile(model.model, backend=backend)
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert graphs


class PublishedAttention(nn.Module):
    """A cross-attention with the published signature alone, as projects write their own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.contexts = []

    def forward(self, x, context=None, rotary_pos_emb=None, causal=None, flash_attn_sliding_window=None):
        self.contexts.append(context.shape)
        return self.inner(x, context, rotary_pos_emb, causal)


def test_a_cross_attention_of_other_people_sees_both_halves_of_the_guided_batch(model):
    plain, block = generate(model), model.model.model.transformer.layers[0]
    block.cross_attn = PublishedAttention(block.cross_attn)
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert block.cross_attn.contexts == [(2, 2, 32)] * STEPS


def test_a_context_by_keyword_does_not_meet_one_by_position(model):
    attention = model.model.model.transformer.layers[0].cross_attn
    original, plain = attention.forward, generate(model)
    attention.forward = lambda x, *args, context=None, **kwargs: original(x, *args, context=context * 1.0, **kwargs)
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)


def test_a_replaced_apply_attn_is_called_with_the_published_arguments(model):
    """With fewer heads of keys and values than of queries, as Stable Audio Open has."""
    config = model_config("rectified_flow")
    config["model"]["diffusion"]["config"] |= {"num_heads": 4, "project_cond_tokens": False}
    model = make(config)
    attention = model.model.model.transformer.layers[0].cross_attn
    plain, original, heads = generate(model), attention.apply_attn, []

    def apply_attn(
        q,
        k,
        v,
        causal=None,
        flex_attention_block_mask=None,
        flex_attention_score_mod=None,
        flash_attn_sliding_window=None,
    ):
        heads.append((q.shape[1], k.shape[1], v.shape[1]))
        return original(q, k, v, causal=causal)

    attention.apply_attn = apply_attn
    torch.testing.assert_close(generate(model), plain, atol=1e-5, rtol=1e-4)
    assert heads == [(4, 1, 1)] * STEPS


def test_keywords_of_a_control_network_reach_the_transformer(model):
    transformer = model.model.model.transformer
    original, seen = transformer.forward, []

    def forward(x, *args, control_input=None, **kwargs):
        seen.append(control_input)
        return original(x, *args, **kwargs)

    transformer.forward = forward
    x, t = torch.randn(1, 4, 8), torch.tensor([0.5])
    cond = model.get_conditioning_inputs(model.conditioner([{"mood": "calm", "tempo": 90}], "cpu"))
    for scale in (1.0, 3.0):
        model.model(x, t, **cond, cfg_scale=scale, control_input="bars")
    assert seen == ["bars", "bars"]


@torch.no_grad()
def test_a_score_function_bends_attention():
    torch.manual_seed(0)
    attention = Attention(32, 16, zero_init_output=False)
    x = torch.randn(2, 6, 32)
    causal = attention(x, causal=True)
    ahead = attention(x, flex_attention_score_mod=lambda score, b, h, q, k: torch.where(k <= q, score, -float("inf")))
    torch.testing.assert_close(ahead, causal, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name, count", [("encode", 1), ("decode", 1)])
def test_replaced_methods_of_the_pretransform_are_called(model, name, count):
    calls, original = [], getattr(model.pretransform, name)

    def method(x, **kwargs):
        calls.append(x.shape)
        return original(x, **kwargs)

    setattr(model.pretransform, name, method)
    generate(model, init_audio=(16000, torch.randn(2, 256) * 0.1), init_noise_level=0.5)
    assert len(calls) == count


@pytest.mark.parametrize("name", ["encode", "decode", "encode_audio", "decode_audio"])
def test_replaced_methods_of_the_autoencoder_are_called(model, name):
    codec, calls = model.pretransform.model, []
    original = getattr(codec, name)

    def method(x, **kwargs):
        calls.append(1)
        return original(x, **kwargs)

    setattr(codec, name, method)
    generate(model, init_audio=(16000, torch.randn(2, 256) * 0.1), init_noise_level=0.5)
    assert calls == [1]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_hooks_of_the_codec_fire(model, name):
    calls = []
    getattr(model.pretransform.model, name).register_forward_hook(lambda *_: calls.append(1))
    generate(model, init_audio=(16000, torch.randn(2, 256) * 0.1), init_noise_level=0.5)
    assert calls == [1]
