"""What only a real GPU can show; skipped without one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import small_model

import stable_audio_tools
from stable_audio_tools.core.packages import available
from stable_audio_tools.models.diffusion.denoising import GuidedTransformer
from stable_audio_tools.models.diffusion.guidance import Conditions, Guidance
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.precision import hold_in
from stable_audio_tools.models.transformer import backends
from stable_audio_tools.models.transformer.backends import Reach, ScaledDotProduct

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

WINDOW = Reach(63, 64)
# float32 sums in another order; half precision has 11 and 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def heads(length: int = 2500) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, length, 64, generator=generator) for _ in range(3))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel", ["sdpa", "flex", "flash"])
def test_every_kernel_computes_the_window_of_the_cpu(kernel: str, dtype: torch.dtype) -> None:
    exact = ScaledDotProduct().attend(*heads(), WINDOW, None)
    q, k, v = (x.to("cuda", dtype) for x in heads())
    if kernel == "flash" and not available("flash_attn"):
        pytest.skip("flash-attn is not installed")
    chosen = {
        "sdpa": ScaledDotProduct,
        "flex": backends._flex_attention,
        "flash": backends._flash_attention,
    }[kernel]()
    if not chosen.fits(q, k, WINDOW, None):
        pytest.skip(f"{chosen.name} does not take {dtype}")
    found = chosen.attend(q, k, v, WINDOW, None)
    torch.testing.assert_close(found.float().cpu(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_guided_pass_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = DiffusionTransformer(io_channels=8, embed_dim=128, depth=4, num_heads=2, cond_token_dim=32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    x, t, tokens = torch.randn(2, 8, 64), torch.tensor([0.3, 0.8]), torch.randn(2, 5, 32)
    outputs = []
    for device, precision in (("cpu", torch.float32), ("cuda", dtype)):
        hold_in(model, precision).to(device)
        denoiser = GuidedTransformer(model, Conditions(cross_attn=tokens.to(device)), Guidance(4.0))
        with torch.no_grad():
            outputs.append(denoiser(x.to(device, precision), t.to(device)).float().cpu())
    scale = outputs[0].std()
    torch.testing.assert_close(outputs[1] / scale, outputs[0] / scale, rtol=0, atol=5 * TOLERANCE[dtype])


@pytest.fixture
def model(tmp_path: Path) -> Any:
    files = small_model("tiny_diffusion_cond", tmp_path)
    return lambda **options: stable_audio_tools.load(files.config, files.weights, "cuda", **options)


ASKED: dict[str, Any] = {"sound": "rain", "seed": 3, "steps": 4, "progress": False}


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_seed_gives_the_same_audio_again(model: Any, precision: str) -> None:
    loaded = model(precision=precision)
    first = loaded.generate(**ASKED).audio
    assert first.isfinite().all() and torch.equal(loaded.generate(**ASKED).audio, first)
    offloaded = model(precision=precision, offload=True).generate(**ASKED).audio
    assert torch.equal(offloaded, first)


def test_no_step_waits_for_the_device(model: Any) -> None:
    """The same as on the fake GPU, by the word of CUDA."""
    loaded, steps = model(precision="float16"), []

    def callback(info: dict[str, Any]) -> None:
        steps.append(info["step"])
        torch.cuda.set_sync_debug_mode("error" if info["step"] < ASKED["steps"] else "default")

    try:
        loaded.generate(callback=callback, **ASKED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_generates_the_same(model: Any, mode: str) -> None:
    loaded = model()
    before = loaded.generate(**ASKED).audio
    loaded.compile(mode=mode)
    for _ in range(2):
        torch.testing.assert_close(loaded.generate(**ASKED).audio, before, rtol=0, atol=2e-3)
