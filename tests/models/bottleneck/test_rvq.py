"""Residual vector quantisation: names in files, training of the codebooks, releases of the package."""

from collections import OrderedDict

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.bottleneck import RVQBottleneck, RVQVAEBottleneck
from stable_audio_tools.models.bottleneck.rvq import make_residual_vq


@pytest.fixture
def bottleneck() -> RVQBottleneck:
    torch.manual_seed(0)
    return RVQBottleneck(dim=4, codebook_size=8, num_quantizers=2, kmeans_init=False)


def test_names_and_shapes_of_published_files(bottleneck: RVQBottleneck) -> None:
    shapes = {name: tuple(value.shape) for name, value in bottleneck.state_dict().items()}
    assert shapes == {
        f"quantizer.layers.{layer}._codebook.{name}": shape
        for layer in (0, 1)
        for name, shape in {
            "initted": (1,),
            "cluster_size": (1, 8),
            "embed_avg": (1, 8, 4),
            "embed": (1, 8, 4),
        }.items()
    }


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("assign", [False, True])
def test_both_forms_of_the_flag_load(bottleneck: RVQBottleneck, shape: tuple[int, ...], assign: bool) -> None:
    weights = OrderedDict(
        (name, torch.tensor(True).reshape(shape) if name.endswith("initted") else value)
        for name, value in bottleneck.state_dict().items()
    )
    other = torch.nn.ModuleDict({"bottleneck": RVQBottleneck(dim=4, codebook_size=8, num_quantizers=2)})
    other.load_state_dict({f"bottleneck.{name}": value for name, value in weights.items()}, assign=assign)
    flag = other.state_dict()["bottleneck.quantizer.layers.0._codebook.initted"]
    assert flag.shape == (1,)
    assert flag.item() == 1.0


def test_codebooks_learn_in_training_only(bottleneck: RVQBottleneck) -> None:
    before = bottleneck.quantizer.layers[0]._codebook.embed.clone()
    x = torch.randn(2, 4, 50)
    bottleneck.eval().encode(x)
    assert torch.equal(before, bottleneck.quantizer.layers[0]._codebook.embed)
    bottleneck.train().encode(x)
    assert not torch.equal(before, bottleneck.quantizer.layers[0]._codebook.embed)


def test_frozen_codebooks_stay() -> None:
    frozen = RVQBottleneck(dim=4, codebook_size=8, num_quantizers=2, kmeans_init=False, freeze_codebook=True).train()
    before = frozen.quantizer.layers[0]._codebook.embed.clone()
    frozen.encode(torch.randn(2, 4, 50))
    assert torch.equal(before, frozen.quantizer.layers[0]._codebook.embed)


def test_clusters_of_the_first_batch() -> None:
    torch.manual_seed(0)
    bottleneck = RVQBottleneck(dim=4, codebook_size=8, num_quantizers=1).train()
    assert bottleneck.quantizer.layers[0]._codebook.initted.item() == 0
    bottleneck.encode(torch.randn(2, 4, 50))
    assert bottleneck.quantizer.layers[0]._codebook.initted.item() == 1
    assert bottleneck.quantizer.layers[0]._codebook.embed.abs().sum() > 0


def test_codes_left_out_in_training_add_nothing(bottleneck: RVQBottleneck) -> None:
    codes = torch.tensor([[[3, -1], [1, -1]]])
    torch.testing.assert_close(bottleneck.decode_tokens(codes), bottleneck.decode_tokens(codes[..., :1]))


def test_more_codebooks_describe_the_latents_better() -> None:
    torch.manual_seed(0)
    bottleneck = RVQBottleneck(dim=4, codebook_size=32, num_quantizers=4, kmeans_iters=10).train()
    x = torch.randn(4, 4, 100)
    bottleneck.encode(x)
    bottleneck.eval()
    errors = [(bottleneck.encode(x, n_quantizers=count) - x).pow(2).mean() for count in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


def test_vae_first_then_codes() -> None:
    torch.manual_seed(0)
    bottleneck = RVQVAEBottleneck(dim=4, codebook_size=8, num_quantizers=2, kmeans_init=False).eval()
    latents, info = bottleneck.encode(torch.randn(2, 8, 10), return_info=True)
    assert latents.shape == (2, 4, 10)
    assert {"kl", "quantizer_indices", "quantizer_loss"} <= set(info)


def test_an_option_that_the_installed_release_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"bottleneck\.config\.reinmaxx: the installed vector-quantize-pytorch"):
        make_residual_vq({"dim": 4, "codebook_size": 8, "num_quantizers": 1, "reinmaxx": True})


def test_codes_of_affine_codebooks_are_refused() -> None:
    bottleneck = RVQBottleneck(dim=4, codebook_size=8, num_quantizers=1, kmeans_init=False, affine_param=True)
    with pytest.raises(ValueError, match="depend on the batch"):
        bottleneck.decode_tokens(torch.zeros(1, 3, 1, dtype=torch.long))
