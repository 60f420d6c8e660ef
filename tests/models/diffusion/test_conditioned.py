"""Conditional models from configs: routing of conditions, agreement of widths, warnings, the published constructor."""

import copy
import logging

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.diffusion import (
    ConditionedDiffusionModelWrapper,
    DiTWrapper,
    create_diffusion_cond_from_config,
    create_diffusion_uncond_from_config,
)

CONFIG = {
    "model_type": "diffusion_cond",
    "sample_size": 64,
    "sample_rate": 16000,
    "model": {
        "io_channels": 4,
        "conditioning": {
            "cond_dim": 8,
            "configs": [
                {"id": "mood", "type": "list", "config": {"options": ["calm", "bright"]}},
                {"id": "bars", "type": "int", "config": {"max_val": 16}},
                {"id": "tempo", "type": "number", "config": {"max_val": 200}},
            ],
        },
        "diffusion": {
            "type": "dit",
            "cross_attention_cond_ids": ["mood", "bars"],
            "global_cond_ids": ["tempo"],
            "config": {
                "io_channels": 4,
                "embed_dim": 32,
                "depth": 1,
                "num_heads": 1,
                "cond_token_dim": 8,
                "global_cond_dim": 8,
            },
        },
    },
}
METADATA = [{"mood": "calm", "bars": 8, "tempo": 120}, {"mood": "bright", "bars": 4, "tempo": 90}]


def changed(*changes):
    config = copy.deepcopy(CONFIG)
    for path, value in changes:
        *way, last = path.split(".")
        node = config["model"]
        for key in way:
            node = node[key]
        node[last] = value
    return config


def test_a_config_runs():
    model = create_diffusion_cond_from_config(CONFIG)
    conditions = model.conditioner(METADATA, "cpu")
    out = model(torch.randn(2, 4, 16), torch.rand(2), cond=conditions, cfg_scale=2.0, rescale_cfg=True, batch_cfg=True)
    assert out.shape == (2, 4, 16) and model.min_input_length == 1


def test_the_two_model_types_build_the_same():
    inpaint = create_model_from_config({**CONFIG, "model_type": "diffusion_cond_inpaint"})
    assert inpaint.state_dict().keys() == create_model_from_config(CONFIG).state_dict().keys()


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        model = create_model_from_config(CONFIG)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}


def plain(**ids):
    return ConditionedDiffusionModelWrapper(
        DiTWrapper(io_channels=4, embed_dim=32, depth=1, num_heads=1), None, 4, 16000, min_input_length=1, **ids
    )


def test_conditions_are_routed_by_id():
    model = plain(
        cross_attn_cond_ids=["text", "mood"],
        global_cond_ids=["tempo", "mood"],
        input_concat_ids=["inpaint_mask", "inpaint_masked_input"],
        prepend_cond_ids=["text"],
    )
    given = {
        "text": (torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [1, 0, 0]])),
        "mood": (torch.randn(2, 1, 8), torch.ones(2, 1)),
        "tempo": [torch.randn(2, 5), None],
        "inpaint_mask": [torch.ones(2, 1, 6)],
        "inpaint_masked_input": [torch.randn(2, 4, 6)],
    }
    inputs = model.get_conditioning_inputs(given)
    assert torch.equal(inputs["cross_attn_cond"], torch.cat([given["text"][0], given["mood"][0]], dim=1))
    assert inputs["cross_attn_mask"].tolist() == [[True, True, False, True], [True, False, False, True]]
    assert torch.equal(inputs["global_cond"], torch.cat([given["tempo"][0], given["mood"][0][:, 0]], dim=1))
    assert torch.equal(inputs["input_concat_cond"][:, 1:], given["inpaint_masked_input"][0])
    assert torch.equal(inputs["prepend_cond"], given["text"][0])
    negative = model.get_conditioning_inputs(given, negative=True)
    assert sorted(negative) == [
        "negative_cross_attn_cond",
        "negative_cross_attn_mask",
        "negative_global_cond",
        "negative_input_concat_cond",
    ]
    assert set(plain().get_conditioning_inputs({}).values()) == {None}


def test_a_missing_condition_names_those_given():
    with pytest.raises(ValueError, match=r"'mood' is missing \(conditions given: bars, tempo\)"):
        plain(cross_attn_cond_ids=["mood"]).get_conditioning_inputs({"tempo": (None,), "bars": (None,)})


def test_concatenated_conditions_must_be_equally_long():
    model = plain(input_concat_ids=["a", "b"])
    with pytest.raises(ValueError, match="must have equal lengths, and have these frames: 'a' 6, 'b' 5"):
        model.get_conditioning_inputs({"a": [torch.ones(1, 1, 6)], "b": [torch.ones(1, 1, 5)]})


MISTAKES = {
    "unknown id": (
        [("diffusion.global_cond_ids", ["tempoo"])],
        r"model\.diffusion\.global_cond_ids\[0\]: no conditioner has the id 'tempoo'; did you mean 'tempo'\?",
    ),
    "token width": (
        [("diffusion.config.cond_token_dim", 16)],
        r"cond_token_dim: is 16, but the conditions of diffusion\.cross_attention_cond_ids have other widths: mood 8",
    ),
    "token width left out": (
        [("diffusion.config.cond_token_dim", 0)],
        r"cond_token_dim: is 0, but diffusion\.cross_attention_cond_ids names conditions",
    ),
    "global width": (
        [("diffusion.global_cond_ids", ["tempo", "bars"])],
        r"global_cond_dim: is 8, but the widths of diffusion\.global_cond_ids add up to 16 \(tempo 8, bars 8\): use 16",
    ),
    "prepended width": (
        [("diffusion.prepend_cond_ids", ["bars"])],
        r"prepend_cond_dim: is 0, but diffusion\.prepend_cond_ids names conditions \(bars 8\)",
    ),
    "inpainting width": (
        [
            ("diffusion.input_concat_ids", ["inpaint_mask", "inpaint_masked_input"]),
            ("diffusion.config.input_concat_dim", 4),
        ],
        r"input_concat_dim: is 4, but the widths of .* add up to 5 \(inpaint_mask 1, inpaint_masked_input 4\): use 5",
    ),
    "nothing to concatenate": (
        [("diffusion.config.input_concat_dim", 4)],
        r"input_concat_dim: is 4, but diffusion\.input_concat_ids is empty",
    ),
    "channels": (
        [("io_channels", 3)],
        r"diffusion\.config\.io_channels: is 4, but io_channels of the model is 3",
    ),
    "pretransform": (
        [("pretransform", {"type": "patched", "config": {"channels": 2, "patch_size": 4}})],
        r"io_channels: is 4, but the pretransform delivers 8 channels: use 8",
    ),
    "heads": (
        [("diffusion.config.num_heads", 5)],
        r"embed_dim: is 32; it must be a multiple of num_heads, which is 5: use 30 or 35",
    ),
    "unprojected tokens": (
        [("diffusion.config.project_cond_tokens", False)],
        r"cond_token_dim: is 8, and with project_cond_tokens false .* use 32, or set project_cond_tokens to true",
    ),
    "unprojected global": (
        [("diffusion.config.project_global_cond", False)],
        r"global_cond_dim: is 8, and with project_global_cond false it must equal embed_dim, 32",
    ),
    "noise level channels": (
        [("diffusion.config.timestep_cond_type", "input_concat")],
        r"timestep_embed_dim: missing",
    ),
    "even kernel": (
        [("diffusion.config.ff_kwargs", {"use_conv": True, "conv_kernel_size": 4})],
        r"ff_kwargs\.conv_kernel_size: is 4, and must be odd to keep lengths: use 5",
    ),
    "option of attention": (
        [("diffusion.config.attn_kwargs", {"qk_nrm": "ln"})],
        r"attn_kwargs\.qk_nrm: unknown key; did you mean 'qk_norm'\?",
    ),
    "option": ([("diffusion.config.dept", 2)], r"model\.diffusion\.config\.dept: unknown key; did you mean 'depth'\?"),
    "window": ([("diffusion.config.sliding_window", [3])], r"sliding_window: expected at least 2 entries"),
    "shift": (
        [("diffusion.distribution_shift_options", {"base_shfit": 0.5})],
        r"distribution_shift_options\.base_shfit: unknown key; did you mean 'base_shift'\?",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(changed(*changes))


def test_all_mistakes_come_at_once():
    config = changed(("diffusion.config.cond_token_dim", 16), ("diffusion.global_cond_ids", ["none"]))
    with pytest.raises(ConfigError) as caught:
        create_model_from_config(config)
    assert len(caught.value.problems) == 2


def test_pre_encoded_conditions_may_have_any_width():
    create_model_from_config(
        changed(("conditioning.pre_encoded_keys", ["tempo"]), ("diffusion.config.global_cond_dim", 24))
    )


def test_the_objective_reaches_the_backbone_and_the_shift_the_wrapper():
    model = create_model_from_config(
        changed(
            ("diffusion.diffusion_objective", "rectified_flow"),
            ("diffusion.distribution_shift_options", {"min_length": 64, "max_length": 128}),
        )
    )
    assert model.diffusion_objective == model.model.model.diffusion_objective == "rectified_flow"
    assert model.dist_shift.min_length == 64


def test_lengths_count_patches_and_pretransform():
    config = changed(
        ("diffusion.config.patch_size", 2),
        ("pretransform", {"type": "patched", "config": {"channels": 2, "patch_size": 2}}),
    )
    assert create_model_from_config(config).min_input_length == 4


UNET = {
    "in_channels": 4,
    "channels": 16,
    "resnet_groups": 4,
    "multipliers": [1, 2],
    "factors": [2],
    "num_blocks": [1],
    "attentions": [0, 0],
    "context_features": 8,
}


def test_conditions_without_an_input_are_warned_of(caplog):
    config = changed(("diffusion.type", "adp_1d"), ("diffusion.config", UNET))
    with caplog.at_level(logging.WARNING):
        create_model_from_config(config)
    assert "model.diffusion.cross_attention_cond_ids: 'adp_1d' has no such input" in caplog.text


def test_a_unets_widths_are_checked_by_its_own_keys():
    config = changed(("diffusion.type", "adp_1d"), ("diffusion.config", {**UNET, "context_features": 16}))
    with pytest.raises(ConfigError, match=r"diffusion\.config\.context_features: is 16, but the widths of .* use 8"):
        create_model_from_config(config)


def test_factories_insist_on_their_kind():
    uncond = {
        "model_type": "diffusion_uncond",
        "sample_rate": 16000,
        "model": {"type": "dit", "config": {"in_channels": 2, "embed_dim": 32, "depth": 1, "num_heads": 1}},
    }
    with pytest.raises(ConfigError, match="'diffusion_uncond' is not a conditional diffusion model"):
        create_diffusion_cond_from_config(uncond)
    with pytest.raises(ConfigError, match="'diffusion_cond' is not an unconditional diffusion model"):
        create_diffusion_uncond_from_config(CONFIG)
