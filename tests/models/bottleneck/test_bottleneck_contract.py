"""What holds for every registered bottleneck: shapes, codes, precision, weights, facts, refusals."""

from typing import Any

import pytest
import torch

from stable_audio_tools.core.config import components, validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.bottleneck import Bottleneck, DiscreteBottleneck
from stable_audio_tools.models.factory import create_bottleneck_from_config

DIM, FRAMES = 8, 20
RVQ = {"dim": DIM, "codebook_size": 16, "num_quantizers": 3, "kmeans_init": False}
DAC = {"input_dim": DIM, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}

NODES: dict[str, dict[str, Any]] = {
    "tanh": {"type": "tanh", "config": {"scale": 2.0}},
    "vae": {"type": "vae"},
    "l2_norm": {"type": "l2_norm"},
    "kl": {"type": "kl", "config": {"sample": False}},
    "wasserstein": {"type": "wasserstein", "config": {"noise_augment_dim": 2, "use_tanh": True}},
    "soft_norm": {"type": "soft_norm", "config": {"dim": DIM, "noise_augment_dim": 3, "noise_regularize": True}},
    "softnorm": {
        "type": "softnorm",
        "config": {"dim": DIM, "noise_augment_dim": 3, "noise_regularize": True, "auto_scale": True},
    },
    "rvq": {"type": "rvq", "config": RVQ},
    "rvq-projected": {"type": "rvq", "config": {**RVQ, "codebook_dim": 4, "shared_codebook": True}},
    "rvq-cosine": {"type": "rvq", "config": {**RVQ, "use_cosine_sim": True}},
    "rvq_vae": {"type": "rvq_vae", "config": RVQ},
    "dac_rvq": {"type": "dac_rvq", "config": DAC},
    "dac_rvq-on-decode": {"type": "dac_rvq", "config": {**DAC, "quantize_on_decode": True}},
    "dac_rvq-noise": {"type": "dac_rvq", "config": {**DAC, "noise_augment_dim": 2, "codebook_dim": [2, 3, 4]}},
    "dac_rvq_vae": {"type": "dac_rvq_vae", "config": DAC},
    "fsq": {"type": "fsq", "config": {"levels": [5, 4], "num_codebooks": 4}},
    "fsq-one-codebook": {"type": "fsq", "config": {"levels": [5, 4, 3, 2, 2, 2, 3, 3]}},
    "fsq-one-number": {"type": "fsq", "config": {"dim": DIM, "levels": 3}},
    "fsq-projected": {"type": "fsq", "config": {"dim": DIM, "levels": [8, 5, 5], "noise_augment_dim": 1}},
    "dithered_fsq": {"type": "dithered_fsq", "config": {"dim": DIM, "levels": 5}},
    "dithered_fsq-codebooks": {
        "type": "dithered_fsq",
        "config": {"dim": 4, "levels": [3, 4, 5, 6], "num_codebooks": 2},
    },
}
DISCRETE = [name for name in NODES if "fsq" in name or "rvq" in name]


def build(name: str) -> Any:
    torch.manual_seed(0)
    return create_bottleneck_from_config(NODES[name]).eval()


def encoded(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What an encoder would give this bottleneck."""
    multiple = validate("bottleneck", NODES[name]).facts["encoder_multiple"]
    return torch.randn(2, DIM * multiple, FRAMES, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_every_bottleneck_is_covered() -> None:
    assert {node["type"] for node in NODES.values()} == set(components("bottleneck"))


@pytest.mark.parametrize("name", NODES)
def test_encode_and_decode(name: str) -> None:
    bottleneck, facts = build(name), validate("bottleneck", NODES[name]).facts
    assert isinstance(bottleneck, Bottleneck)
    latents, info = bottleneck.encode(encoded(name), return_info=True)
    assert latents.shape == (2, DIM, FRAMES)
    assert isinstance(info, dict)
    assert bottleneck.decode(latents).shape == (2, DIM + facts["extra_channels"], FRAMES)
    assert bottleneck.is_discrete is facts["is_discrete"]
    assert facts.get("dim", DIM) == DIM
    if facts["is_discrete"]:
        assert (bottleneck.num_quantizers, bottleneck.codebook_size) == (
            facts["num_quantizers"],
            facts["codebook_size"],
        )


@pytest.mark.parametrize("name", NODES)
def test_without_info_encode_gives_the_latents_alone(name: str) -> None:
    bottleneck = build(name)
    torch.manual_seed(3)
    alone = bottleneck.encode(encoded(name))
    torch.manual_seed(3)
    torch.testing.assert_close(alone, bottleneck.encode(encoded(name), return_info=True)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
def test_codes_stand_for_the_latents(name: str) -> None:
    """Quantised codes decode to what the decoder gets from the latents; noise channels are drawn alike."""
    bottleneck = build(name)
    assert isinstance(bottleneck, DiscreteBottleneck)
    latents, info = bottleneck.encode(encoded(name), return_info=True)
    tokens = bottleneck.tokens(info)
    assert tokens.shape == (2, bottleneck.num_quantizers, FRAMES)
    assert tokens.min() >= 0
    assert tokens.max() < bottleneck.codebook_size
    codes = tokens if bottleneck.codebooks_first else tokens.mT
    torch.manual_seed(4)
    wanted = bottleneck.decode(latents)
    torch.manual_seed(4)
    torch.testing.assert_close(bottleneck.decode_codes(codes), wanted, rtol=0, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("name", DISCRETE)
def test_codes_of_another_layout_are_refused(name: str) -> None:
    bottleneck = build(name)
    with pytest.raises(ValueError, match=rf"with {bottleneck.num_quantizers} codebooks for this model"):
        bottleneck.decode_tokens(torch.zeros(2, 11, 13, dtype=torch.long))


@pytest.mark.parametrize("name", NODES)
def test_gradients_reach_the_encoder(name: str) -> None:
    bottleneck = build(name).train()
    x = encoded(name).requires_grad_()
    latents, _ = bottleneck.encode(x, return_info=True)
    bottleneck.decode(latents).pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NODES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Latents come out in the precision that went in, finite; quantisers compute as in float32."""
    bottleneck = build(name).to(dtype)
    latents, info = bottleneck.encode(encoded(name, dtype), return_info=True)
    assert latents.dtype == dtype
    assert latents.isfinite().all()
    assert bottleneck.decode(latents).isfinite().all()
    if "kl" in info:
        assert info["kl"].isfinite()
    if bottleneck.is_discrete:
        assert all(p.dtype == torch.float32 for p in bottleneck.parameters())
        full = build(name)
        torch.testing.assert_close(full.state_dict(), bottleneck.state_dict(), rtol=0, atol=0)


def test_silence_survives_half_precision() -> None:
    latents = build("l2_norm").encode(torch.zeros(1, DIM, 3, dtype=torch.float16))
    assert latents.isfinite().all()


@pytest.mark.parametrize("name", NODES)
def test_state_dict_round_trip(name: str) -> None:
    weights = build(name).state_dict()
    torch.manual_seed(9)
    other = create_bottleneck_from_config(NODES[name]).eval()
    assert not other.load_state_dict(weights).missing_keys
    torch.manual_seed(5)
    first = other.encode(encoded(name))
    torch.manual_seed(5)
    torch.testing.assert_close(first, build_with(name, 5), rtol=0, atol=0)


def build_with(name: str, seed: int) -> torch.Tensor:
    bottleneck = build(name)
    torch.manual_seed(seed)
    return bottleneck.encode(encoded(name))


@pytest.mark.parametrize("name", NODES)
def test_builds_without_memory(name: str) -> None:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in create_bottleneck_from_config(NODES[name]).state_dict().items()}
    assert shapes == {key: value.shape for key, value in build(name).state_dict().items()}


@pytest.mark.parametrize("name", NODES)
def test_fewer_codebooks_or_a_clear_refusal(name: str) -> None:
    bottleneck = build(name)
    if not bottleneck.is_residual:
        with pytest.raises(ValueError, match="has no residual codebooks to choose from"):
            bottleneck.encode(encoded(name), n_quantizers=1)
    elif name == "dac_rvq-on-decode":
        with pytest.raises(ValueError, match="quantises on decode"):
            bottleneck.encode(encoded(name), n_quantizers=1)
    else:
        torch.manual_seed(6)
        latents, info = bottleneck.encode(encoded(name), return_info=True, n_quantizers=2)
        tokens = bottleneck.tokens(info)
        assert tokens.shape == (2, 2, FRAMES)
        torch.manual_seed(7)
        wanted = bottleneck.decode(latents)
        torch.manual_seed(7)
        codes = tokens if bottleneck.codebooks_first else tokens.mT
        torch.testing.assert_close(bottleneck.decode_tokens(codes), wanted, rtol=0, atol=1e-5)
        torch.manual_seed(6)
        all_tokens = bottleneck.tokens(bottleneck.encode(encoded(name), return_info=True)[1])
        assert torch.equal(tokens, all_tokens[:, :2])
        with pytest.raises(ValueError, match="n_quantizers must be from 1 to 3 for this model, got 4"):
            bottleneck.encode(encoded(name), n_quantizers=4)


@pytest.mark.parametrize("name", NODES)
def test_frozen_on_request(name: str) -> None:
    frozen = create_bottleneck_from_config({**NODES[name], "requires_grad": False})
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "rvq", "config": {"codebok_size": 8}}, "did you mean 'codebook_size'"),
        ({"type": "rvq", "config": {"learnable_codebook": True}}, "codebooks learn one way"),
        ({"type": "fsq", "config": {"levels": 5}}, r"config\.dim: missing"),
        ({"type": "fsq", "config": {"levels": [5, 1]}}, r"expected at least 2, got 1"),
        ({"type": "fsq", "config": {"levels": 1, "dim": 4}}, "a channel needs at least 2 levels"),
        ({"type": "fsq", "config": {"levels": 5, "dim": 5, "num_codebooks": 2}}, "not a multiple of num_codebooks"),
        ({"type": "fsq"}, r"config\.levels: missing"),
        ({"type": "dithered_fsq", "config": {"dim": 3, "levels": [5, 5]}}, "give one for each channel"),
        ({"type": "dac_rvq", "config": {"n_codebooks": 2, "codebook_dim": [4]}}, "n_codebooks is 2"),
        ({"type": "softnrm"}, "did you mean 'softnorm'"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_bottleneck_from_config(config)
