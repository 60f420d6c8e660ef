"""The native quantiser of the Descript Audio Codec against descript-audio-codec."""

from typing import Any

import pytest
import torch

from stable_audio_tools.models.bottleneck import DACRVQBottleneck, DACRVQVAEBottleneck

CONFIG: dict[str, Any] = {"input_dim": 8, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}


@pytest.fixture(scope="module")
def reference() -> Any:
    quantize = pytest.importorskip("dac.nn.quantize")
    torch.manual_seed(0)
    return quantize.ResidualVectorQuantize(**CONFIG)


def native(**options: Any) -> DACRVQBottleneck:
    torch.manual_seed(0)
    return DACRVQBottleneck(**{**CONFIG, **options})


def test_the_same_seed_gives_the_same_weights(reference: Any) -> None:
    ours = native().quantizer.state_dict()
    theirs = reference.state_dict()
    assert list(ours) == list(theirs)
    torch.testing.assert_close(ours, dict(theirs))


@pytest.mark.parametrize("n_quantizers", [None, 1, 2])
def test_values_codes_and_losses_at_inference(reference: Any, n_quantizers: int | None) -> None:
    x = torch.randn(2, 8, 20)
    values, codes, latents, commitment, codebook = reference.eval()(x, n_quantizers)
    made = native().eval().quantizer(x, n_quantizers)
    torch.testing.assert_close(made.values, values)
    assert torch.equal(made.codes, codes)
    torch.testing.assert_close(made.projected, latents)
    torch.testing.assert_close(made.commitment_loss, commitment)
    torch.testing.assert_close(made.codebook_loss, codebook)


@pytest.mark.parametrize("dropout", [0.0, 0.75])
def test_training_draws_and_gradients(reference: Any, dropout: float) -> None:
    reference.train().quantizer_dropout = dropout
    ours = native(quantizer_dropout=dropout).train().quantizer
    x = torch.randn(4, 8, 20)
    torch.manual_seed(3)
    values, _, _, commitment, codebook = reference(x)
    next_draw = torch.rand(1)
    torch.manual_seed(3)
    made = ours(x)
    assert torch.equal(torch.rand(1), next_draw)
    torch.testing.assert_close(made.values, values)
    reference.zero_grad()
    (values.pow(2).sum() + commitment + codebook).backward()
    (made.values.pow(2).sum() + made.commitment_loss + made.codebook_loss).backward()
    for (name, theirs), mine in zip(reference.named_parameters(), ours.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_losses_are_averaged_over_codebooks_in_the_info() -> None:
    bottleneck = native().eval()
    x = torch.randn(2, 8, 20)
    made = bottleneck.quantizer(x)
    info = bottleneck.encode(x, return_info=True)[1]
    torch.testing.assert_close(info["vq/commitment_loss"], made.commitment_loss / 3)
    torch.testing.assert_close(info["vq/codebook_loss"], made.codebook_loss / 3)
    assert info["pre_quantizer"] is x


def test_quantising_on_decode_leaves_the_latents_alone() -> None:
    bottleneck = native(quantize_on_decode=True).eval()
    x = torch.randn(2, 8, 20)
    assert torch.equal(bottleneck.encode(x), x)
    torch.testing.assert_close(bottleneck.decode(x), bottleneck.quantizer(x).values)


def test_vae_tells_its_divergence() -> None:
    info = DACRVQVAEBottleneck(**CONFIG).encode(torch.randn(2, 16, 20), return_info=True)[1]
    assert {"kl", "codes", "vq/commitment_loss", "vq/codebook_loss"} <= set(info)
