"""Language models from configs: causality by gradient, conditions, generation with and without cache, mistakes."""

import copy

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.lm import AudioLanguageModelWrapper, create_audio_lm_from_config

CODEBOOKS, CARD = 3, 16
CODEC = {
    "encoder": {"type": "dac", "config": {"in_channels": 1, "latent_dim": 8, "d_model": 4, "strides": [2, 4]}},
    "decoder": {"type": "dac", "config": {"out_channels": 1, "latent_dim": 8, "channels": 16, "rates": [4, 2]}},
    "bottleneck": {
        "type": "dac_rvq",
        "config": {"input_dim": 8, "n_codebooks": CODEBOOKS, "codebook_size": CARD, "codebook_dim": 4},
    },
    "latent_dim": 8,
    "downsampling_ratio": 8,
    "io_channels": 1,
}
CONDITIONING = {
    "cond_dim": 8,
    "configs": [
        {"id": "mood", "type": "list", "config": {"options": ["calm", "bright"], "output_dim": 16}},
        {"id": "bars", "type": "int", "config": {"max_val": 16}},
        {"id": "seconds", "type": "number", "config": {"max_val": 60}},
    ],
}
ROUTES = {
    "none": ({}, {}),
    "prepend": ({"prepend_cond_ids": ["bars", "seconds"]}, {"prepend_cond_dim": 8}),
    "cross": ({"cross_attention_cond_ids": ["mood"]}, {"cross_attn_cond_dim": 16}),
    "projected cross": (
        {"cross_attention_cond_ids": ["bars", "seconds"]},
        {"cross_attn_cond_dim": 8, "project_cross_attn_cond": True},
    ),
    "global": ({"global_cond_ids": ["bars", "seconds"]}, {"global_cond_dim": 16}),
    "all": (
        {
            "prepend_cond_ids": ["bars"],
            "cross_attention_cond_ids": ["mood"],
            "global_cond_ids": ["seconds"],
        },
        {"prepend_cond_dim": 8, "cross_attn_cond_dim": 16, "global_cond_dim": 8},
    ),
}
METADATA = [{"mood": "bright", "bars": 4, "seconds": 12.5}, {"mood": "calm", "bars": 8, "seconds": 3}]


def config(pattern="delay", route="none", **options):
    ids, widths = copy.deepcopy(ROUTES[route])
    return {
        "model_type": "lm",
        "sample_rate": 16000,
        "model": {
            "pretransform": {"type": "autoencoder", "config": copy.deepcopy(CODEC)},
            "conditioning": copy.deepcopy(CONDITIONING),
            "lm": {
                "type": "continuous_transformer",
                "codebook_pattern": pattern,
                **ids,
                "config": {
                    "embed_dim": 32,
                    "depth": 2,
                    "dim_heads": 16,
                    "zero_init_branch_outputs": False,
                    **widths,
                    **options,
                },
            },
        },
    }


def create(*args, **options) -> AudioLanguageModelWrapper:
    torch.manual_seed(0)
    return create_audio_lm_from_config(config(*args, **options)).eval()


def some_codes(frames=6, batch=2):
    return torch.randint(0, CARD, (batch, CODEBOOKS, frames), generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("route", ROUTES)
def test_logits_train(route):
    model = create(route=route).train()
    conditions = model.conditioner(METADATA, "cpu")
    logits, mask = model.compute_logits(some_codes(), condition_tensors=conditions)
    assert logits.shape == (2, CODEBOOKS, 6, CARD) and mask.shape == (2, CODEBOOKS, 6)
    logits[mask].logsumexp(-1).mean().backward()
    assert all(parameter.grad is not None for parameter in model.lm.parameters())
    used = [id for ids in ROUTES[route][0].values() for id in ids]
    for id, conditioner in model.conditioner.conditioners.items():
        trained = [parameter.grad is not None for parameter in conditioner.parameters()]
        assert all(trained) if id in used else not any(trained)


@pytest.mark.parametrize("pattern", ["delay", "parallel", "unroll", "musiclm", "coarse_first"])
def test_no_code_is_predicted_from_itself_or_later_ones(pattern):
    model = create(pattern)
    codes = some_codes(5, 1)
    layout = model.lm.pattern_provider.get_pattern(5)
    with torch.no_grad():
        before, mask = model.compute_logits(codes)
        for codebook in range(CODEBOOKS):
            changed = codes.clone()
            changed[0, codebook, 1] = (codes[0, codebook, 1] + 1) % CARD
            after, _ = model.compute_logits(changed)
            moved = (after - before).nan_to_num().abs().amax(-1)[0] > 0
            seen_later = layout.steps > layout.steps[codebook, 1]
            assert not moved[~seen_later].any()
            assert moved[seen_later & mask[0]].any()


def test_dropped_conditions_are_zeros():
    model = create(route="all")
    conditions = model.conditioner(METADATA, "cpu")
    zeros = {id: (torch.zeros_like(tensor), mask) for id, (tensor, mask) in conditions.items()}
    with torch.no_grad():
        dropped, mask = model.compute_logits(some_codes(), conditions, cfg_dropout_prob=1.0)
        wanted, _ = model.compute_logits(some_codes(), zeros)
        given, _ = model.compute_logits(some_codes(), conditions)
    torch.testing.assert_close(dropped[mask], wanted[mask])
    assert (given[mask] - wanted[mask]).abs().max() > 1e-3


def test_each_item_drops_by_itself():
    model = create(route="prepend")
    conditions = model.conditioner(METADATA * 100, "cpu")
    inputs = []
    model.lm.compute_logits = lambda codes, **given: inputs.append(given["prepend_cond"])
    model.compute_logits(some_codes(batch=200), conditions, cfg_dropout_prob=0.3)
    dropped = (inputs[0] == 0).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert 30 < dropped.all(1).sum() < 90  # 60 expected, standard deviation 6.5


def test_padding_of_a_prepended_text_is_not_seen():
    model = create(route="prepend")
    tokens = torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, False, False]] * 2)
    other = torch.where(mask[..., None], tokens, torch.randn(2, 4, 8))
    outputs = [
        model.compute_logits(some_codes(), {"bars": (given, mask), "seconds": (torch.ones(2, 8), None)})
        for given in (tokens, other)
    ]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, equal_nan=True)


# ------------------------------------------------------------------ generation


@pytest.mark.parametrize("pattern", ["delay", "parallel", "unroll", "musiclm", "coarse_first"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_the_cache_changes_no_token(pattern, guided):
    model = create(pattern, "all")
    tokens = []
    for use_cache in (False, True):
        torch.manual_seed(1)
        tokens.append(
            model.generate(
                7, conditioning=METADATA, use_cache=use_cache, cfg_scale=3.0 if guided else 1.0, top_k=8, temp=0.9
            )
        )
    assert torch.equal(*tokens)
    assert tokens[0].shape == (2, CODEBOOKS, 7) and tokens[0].min() >= 0 and tokens[0].max() < CARD


@pytest.mark.parametrize(
    "options",
    [
        {"num_memory_tokens": 2},
        {"use_abs_pos_emb": True, "rotary_pos_emb": False},
        {"use_sinusoidal_emb": True},
        {"rotary_pos_emb": False, "add_rope": True},
        {"sliding_window": [4, 0]},
        {"layer_scale": True, "remove_norms": True},
        {"attn_kwargs": {"qk_norm": "ln", "differential": True}},
        {"final_cross_attn_ix": 0, "ff_kwargs": {"glu": False}},
    ],
    ids=str,
)
def test_the_cache_changes_no_token_under_any_option(options):
    model = create("delay", "all", **options)
    tokens = [
        model.generate(8, conditioning=METADATA, use_cache=use_cache, cfg_scale=2.0, temp=0.0)
        for use_cache in (False, True)
    ]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("ids", ["prepend_cond_ids", "cross_attention_cond_ids"])
def test_the_cache_changes_no_token_behind_padding(ids):
    """Texts of different lengths in a batch: what stands for padding is hidden in every step."""
    route = {"prepend_cond_ids": "prepend", "cross_attention_cond_ids": "projected cross"}[ids]
    model = create(route=route)
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    conditions = {"bars": (5 * torch.randn(2, 4, 8), mask), "seconds": (torch.randn(2, 1, 8), None)}
    other = {**conditions, "bars": (conditions["bars"][0].masked_fill(~mask[..., None], 7.0), mask)}
    options = {"max_gen_len": 8, "cfg_scale": 2.0, "temp": 0.0}
    whole = model.generate(conditioning_tensors=conditions, use_cache=False, **options)
    assert torch.equal(model.generate(conditioning_tensors=conditions, **options), whole)
    assert torch.equal(model.generate(conditioning_tensors=other, **options), whole)


def test_a_condition_that_says_nothing_makes_no_nan():
    model = create(route="prepend")
    conditions = {
        "bars": (torch.zeros(1, 3, 8), torch.zeros(1, 3)),
        "seconds": (torch.zeros(1, 1, 8), torch.zeros(1, 1)),
    }
    logits, mask = model.compute_logits(some_codes(batch=1), conditions)
    assert logits[mask].isfinite().all()


@pytest.mark.parametrize("pattern", ["delay", "unroll", "coarse_first"])
def test_generation_without_temperature_takes_the_likeliest_of_training(pattern):
    """What generation writes must be what the training logits of the same codes say."""
    model = create(pattern, "all")
    codes = model.generate(6, conditioning=METADATA, temp=0.0)
    logits, mask = model.compute_logits(codes, model.conditioner(METADATA, "cpu"))
    assert torch.equal(logits.argmax(-1)[mask], codes[mask])


@pytest.mark.parametrize("pattern", ["delay", "parallel", "unroll", "musiclm", "coarse_first"])
def test_continuations_keep_what_they_continue(pattern):
    model = create(pattern, "prepend")
    whole = model.generate(8, conditioning=METADATA, temp=0.0)
    first = whole[..., :3]
    continued = model.generate(8, init_data=first, conditioning=METADATA, temp=0.0)
    assert torch.equal(continued[..., :3], first)
    if pattern != "coarse_first":  # there the first frames of the fine codebooks come after the last coarse one
        assert torch.equal(continued, whole)


def test_guidance_by_its_formula():
    model = create("parallel", "prepend")
    conditions = model.conditioner(METADATA[:1], "cpu")
    inputs = model.get_conditioning_inputs(conditions)
    start = torch.full((1, CODEBOOKS, 1), CARD)
    zeros = {name: torch.zeros_like(value) if name == "prepend_cond" else value for name, value in inputs.items()}
    with torch.no_grad():
        led, none = model.lm(start, **inputs), model.lm(start, **zeros)
    wanted = (none + 4.0 * (led - none)).argmax(-1)[..., 0]
    assert torch.equal(model.generate(1, conditioning_tensors=conditions, cfg_scale=4.0, temp=0.0)[..., 0], wanted)


def test_guidance_away_from_a_negative_condition():
    model = create("parallel", "all")
    same = model.generate(4, conditioning=METADATA, negative_conditioning=METADATA, cfg_scale=5.0, temp=0.0)
    assert torch.equal(same, model.generate(4, conditioning=METADATA, temp=0.0))
    away = model.generate(4, conditioning=METADATA, negative_conditioning=METADATA[::-1], cfg_scale=5.0, temp=0.0)
    assert not torch.equal(away, same)


def test_conditions_that_guidance_keeps():
    model = create("parallel", "all")
    kept = {"cross_attn_use_cfg": False, "prepend_use_cfg": False, "global_use_cfg": False}
    guided = model.generate(4, conditioning=METADATA, cfg_scale=5.0, temp=0.0, **kept)
    assert torch.equal(guided, model.generate(4, conditioning=METADATA, temp=0.0))
    partly = model.generate(4, conditioning=METADATA, cfg_scale=5.0, temp=0.0, prepend_use_cfg=False)
    assert not torch.equal(partly, guided)


def test_every_step_is_told():
    steps = []
    create("delay").generate(5, callback=lambda step, steps_in_all: steps.append((step, steps_in_all)))
    assert steps == [(step, 5 + 2) for step in range(1, 8)]


def test_a_generator_of_ones_own():
    model = create()
    drawn = [model.generate(6, batch_size=2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_audio():
    audio = create(route="prepend").generate_audio(max_gen_len=9, conditioning=METADATA)
    assert audio.shape == (2, 1, 72) and audio.isfinite().all()


def test_half_precision():
    model = create(route="all").to(torch.bfloat16)
    assert model.generate(3, conditioning=METADATA, cfg_scale=2.0).shape == (2, CODEBOOKS, 3)


# ------------------------------------------------------------------ configs and mistakes


def test_building_on_the_meta_device():
    with torch.device("meta"):
        model = create_model_from_config(config(route="all"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.state_dict().keys() == create(route="all").state_dict().keys()


def test_published_names_of_weights():
    shapes = {name: tuple(value.shape) for name, value in create(route="projected cross").state_dict().items()}
    assert shapes["lm.embeds.2.weight"] == (CARD + 1, 32) and shapes["lm.quantizer_heads.0.bias"] == (CARD,)
    assert shapes["lm.backbone.to_cross_attn_embed.0.weight"] == (32, 8)
    assert "lm.backbone.to_prepend_embed.2.weight" in create(route="prepend").state_dict()
    assert "lm.backbone.model.rotary_pos_emb.inv_freq" in shapes


def changed(path, value, **options):
    built = config(**options)
    *parents, last = path.split(".")
    node = built["model"]
    for key in parents:
        node = node[key]
    node[last] = value
    return built


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (changed("lm.codebook_pattern", "delayed"), r"model.lm.codebook_pattern: expected 'delay', .* got 'delayed'"),
        (changed("lm.type", "x-transformers"), "model.lm.type: no lm named 'x-transformers'"),
        (changed("lm.prepend_cond_ids", ["barz"]), r"model.lm.prepend_cond_ids\[0\]: .*did you mean 'bars'"),
        (
            changed("lm.config.prepend_cond_dim", 9, route="prepend"),
            "prepend_cond_dim: is 9, but the conditions of lm.prepend_cond_ids have other widths: bars 8, seconds 8",
        ),
        (changed("lm.config.global_cond_dim", 8, route="global"), r"global_cond_dim: is 8, .* add up to 16 .*: use 16"),
        (changed("lm.config.cross_attn_cond_dim", 12), "cross_attn_cond_dim: is 12; .* must be one of .16, 32."),
        (changed("lm.config.embed_dim", 40), "embed_dim: is 40, not a multiple of dim_heads, 16; use 32"),
        (changed("lm.config.conformer", True), "conformer: its convolutions look ahead"),
        (changed("lm.config.ff_kwargs", {"use_conv": True}), "ff_kwargs.use_conv: its convolutions look ahead"),
        (changed("lm.config.attn_kwargs", {"feat_scale": True}), "attn_kwargs.feat_scale: it takes the mean"),
        (changed("pretransform.config.bottleneck", {"type": "vae"}), "pretransform: has no tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_config(broken, sentence):
    if broken["model"]["pretransform"]["config"]["bottleneck"]["type"] == "vae":
        broken["model"]["pretransform"]["config"]["encoder"]["config"]["latent_dim"] = 16
    with pytest.raises(ConfigError, match=sentence):
        create_model_from_config(broken)


def test_conditions_without_a_way_in_are_told(caplog):
    create_model_from_config(changed("lm.global_cond_ids", ["bars"]))
    assert "model.lm.global_cond_ids: config.global_cond_dim is not set; these conditions have no effect" in caplog.text


def test_wrong_use():
    model = create(route="prepend")
    with pytest.raises(ValueError, match="init_data already has 6 frames, and max_gen_len is 6; raise max_gen_len"):
        model.generate(6, init_data=some_codes(6), conditioning=METADATA)
    with pytest.raises(ValueError, match=r"different batch sizes: prepend_cond 2, .*batch_size 3"):
        model.generate(6, batch_size=3, conditioning=METADATA)
    with pytest.raises(ValueError, match=r"'seconds' is missing \(conditions given: bars\)"):
        model.generate(6, conditioning_tensors={"bars": (torch.zeros(1, 1, 8), None)})
    with pytest.raises(ValueError, match="has 3 codebooks, the sequence has 2"):
        model.lm(torch.zeros(1, 2, 4, dtype=torch.long))
    with pytest.raises(ConfigError, match="is not a language model"):
        create_audio_lm_from_config({"model_type": "autoencoder", "sample_rate": 16000, "model": CODEC})
    model.conditioner = None
    with pytest.raises(ValueError, match="this model has no conditioners"):
        model.generate(6, conditioning=METADATA)


def test_a_negative_condition_of_another_length():
    model = create(route="prepend")
    conditions = {"bars": (torch.zeros(1, 1, 8), None), "seconds": (torch.zeros(1, 1, 8), None)}
    negative = {**conditions, "bars": (torch.zeros(1, 3, 8), None)}
    with pytest.raises(ValueError, match=r"the shape \(1, 4, 8\), the conditioning \(1, 2, 8\)"):
        model.generate(
            4, conditioning_tensors=conditions, negative_conditioning_tensors=negative, cfg_scale=2.0, temp=0.0
        )
