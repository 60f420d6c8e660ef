"""Generation on a GPU without a GPU, at full size: nothing waits, nothing is converted, memory stays within bounds."""

from typing import Any

import pytest
import torch
from support.fake_cuda import FakeCuda
from support.hollow_models import GIB, T5_XXL, hollow_model, open_small, watch_steps

from stable_audio_tools.models.lora import LoraConfig, attach_lora, merge_lora

PRECISIONS = ["float32", "float16", "bfloat16"]
ONE_FAST = ["float16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "bfloat16"))]
NOTHING = (0, 0, 0)  # waits, copies between host and device, bytes of weights converted
OPEN = "stable_audio_open_1_0"
TONE = (44100, torch.zeros(2, 44100 * 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "most"),
    [("float32", 8.4), ("float16", 4.4), ("bfloat16", 6.4)],  # GiB: weights, and the decoder's activations for 47 s
)
def test_open_one_samples_without_waiting(precision: str, most: float) -> None:
    with FakeCuda() as gpu:
        model = hollow_model(OPEN, gpu, precision)
        loaded = gpu.peak_bytes
        gpu.conversions.clear()
        watched = watch_steps(gpu)
        made = model.generate(prompt="rain", steps=4, seed=1, callback=watched.callback, progress=False)
        assert made.audio.shape == (1, 2, 2097152)
        assert watched.steps == [NOTHING] * 3
        assert not gpu.conversions, "weights are held in the precision of the run"
        assert gpu.peak_bytes < most * GIB
        weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
        assert loaded < 1.01 * weights, "loading held no other precision on the device"


@pytest.mark.parametrize(("precision", "most"), [("float16", 3.0), ("bfloat16", 4.2)])
def test_offloading_holds_one_part_at_a_time(precision: str, most: float) -> None:
    with FakeCuda() as gpu:
        model = hollow_model(OPEN, gpu, precision, offload=True)
        assert gpu.held_bytes == 0
        watched = watch_steps(gpu)
        model.generate(prompt="rain", steps=3, seed=1, callback=watched.callback, progress=False)
        assert watched.steps == [NOTHING] * 2
        assert gpu.peak_bytes < most * GIB
        assert gpu.held_bytes < 0.05 * GIB, "every part left the device"


@pytest.mark.slow
def test_offloading_in_one_call_frees_a_model_that_was_loaded_to_the_device() -> None:
    with FakeCuda() as gpu:
        model = hollow_model(OPEN, gpu, "float16")
        gpu.restart()
        held = gpu.held_bytes
        model.generate(prompt="rain", steps=2, seed=1, offload=True, progress=False)
        assert held > 2 * GIB > 40 * gpu.held_bytes


def test_a_large_encoder_leaves_before_the_network_comes() -> None:
    with FakeCuda() as gpu:
        model = hollow_model(OPEN, gpu, "float16", offload=True, t5=T5_XXL)
        model.generate(prompt="rain", steps=2, seed=1, progress=False)
        largest = T5_XXL * 2
        assert largest < gpu.peak_bytes < largest + 0.1 * GIB


@pytest.mark.slow
def test_chunks_bound_the_memory_of_decoding() -> None:
    with FakeCuda() as gpu:
        model = hollow_model(OPEN, gpu, "float16", offload=True)
        peaks = []
        for frames in (None, 128):
            gpu.restart()
            model.generate(prompt="rain", steps=1, seed=1, decode_frames=frames, progress=False)
            peaks.append(gpu.peak_bytes)
    assert peaks[1] <= peaks[0] and peaks[1] < 2.6 * GIB


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "variation": (OPEN, {"prompt": "rain", "steps": 3, "init_audio": TONE, "num_samples": 2}),
    "keeping": (OPEN, {"prompt": "rain", "steps": 3, "inpaint_audio": TONE, "inpaint": [(1, 2)]}),
    "negative prompt": (OPEN, {"prompt": "rain", "steps": 3, "negative_prompt": "noise"}),
    "guidance in an interval": (
        "tiny_diffusion_cond",
        {"sound": "rain", "steps": 4, "cfg_scale": 3, "cfg_interval": (0.2, 0.9)},
    ),
    **{
        f"guidance in an interval, {sampler}": (
            OPEN,
            {"prompt": "rain", "steps": 3, "cfg_interval": (0.2, 0.9), "sampler_type": sampler},
        )
        for sampler in ("dpmpp-3m-sde", "v-ddim")
    },
    **{
        f"Stable Audio 3, {sampler}": (
            "tiny_stable_audio_3",
            {"sound": "rain", "steps": 4, "cfg_scale": 3, "cfg_interval": (0.2, 0.9), "sampler_type": sampler},
        )
        for sampler in ("euler", "rk4", "dpmpp", "pingpong")
    },
    "inpainting": (
        "tiny_diffusion_cond_inpaint",
        {"sound": "rain", "steps": 3, "inpaint_audio": (22050, torch.zeros(2, 6000))},
    ),
    "unconditional": ("tiny_diffusion_uncond", {"steps": 3}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if REQUESTS[kind][0] == OPEN else []) for kind in REQUESTS]
)
def test_every_kind_of_request_samples_without_waiting(kind: str, precision: str) -> None:
    name, asked = REQUESTS[kind]
    with FakeCuda() as gpu:
        model = hollow_model(name, gpu, precision)
        gpu.conversions.clear()
        watched = watch_steps(gpu)
        made = model.generate(seed=1, callback=watched.callback, progress=False, **asked)
        assert made.audio.device.type == "cpu"
        assert watched.steps and set(watched.steps) == {NOTHING}
        assert not gpu.conversions


@pytest.mark.parametrize("precision", PRECISIONS)
def test_language_models_draw_on_the_device(precision: str) -> None:
    with FakeCuda() as gpu:
        model = hollow_model("tiny_lm", gpu, precision)
        gpu.restart()
        progress: list[tuple[int, int]] = []

        def tell(done: int, total: int | None) -> None:
            progress.append((sum(gpu.waits.values()), sum(gpu.host_copies.values())))

        model.generate(sound="rain", seconds=0.3, num_samples=2, seed=1, progress=tell)
        assert len(progress) > 5 and len(set(progress)) == 1, "no token is awaited"
        assert not gpu.conversions


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name",
    ["tiny_autoencoder", "tiny_codec", "tiny_diffusion_autoencoder", "tiny_same"],
)
def test_reconstructions_run_on_the_device(name: str, precision: str) -> None:
    with FakeCuda() as gpu:
        model = hollow_model(name, gpu, precision)
        gpu.conversions.clear()
        audio = (22050, torch.zeros(1, 30000))
        steps = {"steps": 2} if "diffusion" in name else {}
        made = model.generate(init_audio=audio, frame_seconds=0.6, seed=1, progress=False, **steps)
        assert made.audio.shape[-1] == 30000
        assert not gpu.conversions, "no frame converts weights"


def test_a_call_in_another_precision_converts_no_weights_in_its_steps() -> None:
    """The keyword `precision` of the published functions runs the network under autocast."""
    with FakeCuda() as gpu:
        model = hollow_model("tiny_diffusion_cond", gpu)
        network = model.module.model
        weights = {name: weight.data for name, weight in network.named_parameters()}
        model.generate(sound="rain", steps=3, precision="bfloat16", seed=1, progress=False)
        assert not gpu.conversions, "no step converts weights"
        assert all(weight.dtype is weights[name].dtype for name, weight in network.named_parameters())


def test_adapters_with_an_interval_of_noise_levels_wait_for_nothing() -> None:
    with FakeCuda() as gpu:
        model = hollow_model("tiny_diffusion_cond", gpu)
        with gpu.hollow():
            adapter = attach_lora(model.module.model, LoraConfig(rank=2), seed=1)
        adapter.interval = (0.2, 0.9)
        watched = watch_steps(gpu)
        model.generate(sound="rain", steps=4, seed=1, callback=watched.callback, progress=False)
    assert watched.steps == [NOTHING] * 3


NEXT_MEMORY = {  # GiB in float16 and without guidance; 6.5 GB are published for 120 s of the medium model
    "small, 114 s": ("sa3-sm-music", 114, 2.4),
    "medium, 120 s": ("sa3-medium", 120, 5.9),
    "medium, 380 s": ("sa3-medium", 380, 11.6),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NEXT_MEMORY)
def test_stable_audio_3_samples_without_waiting_within_its_memory(case: str) -> None:
    name, seconds, most = NEXT_MEMORY[case]
    with FakeCuda() as gpu:
        model = hollow_model(name, gpu, "float16")
        gpu.conversions.clear()
        watched = watch_steps(gpu)
        asked = {"prompt": "rain", "seconds_total": seconds, "steps": 3, "cfg_scale": 1}
        model.generate(**asked, seed=1, callback=watched.callback, progress=False)
        assert watched.steps == [NOTHING] * 2
        assert gpu.converted_bytes < 0.01 * GIB
        assert gpu.peak_bytes < most * GIB


@pytest.mark.parametrize("precision", PRECISIONS)
def test_models_with_items_of_individual_lengths_are_offloaded(precision: str) -> None:
    with FakeCuda() as gpu:
        model = hollow_model("tiny_stable_audio_3", gpu, precision, offload=True)
        assert gpu.held_bytes == 0
        watched = watch_steps(gpu)
        asked = {"sound": "rain", "steps": 3, "inpaint_audio": (22050, torch.zeros(2, 6000)), "inpaint": [(0.1, 0.2)]}
        model.generate(seed=1, callback=watched.callback, progress=False, **asked)
        assert watched.steps == [NOTHING] * 2
        assert {weight.device.type for weight in model.module.parameters()} == {"cpu"}


@pytest.mark.parametrize("precision", ONE_FAST)
def test_open_small_samples_without_waiting(precision: str) -> None:
    with FakeCuda() as gpu:
        model = hollow_model(open_small(), gpu, precision)
        gpu.conversions.clear()
        watched = watch_steps(gpu)
        model.generate(prompt="rain", steps=3, seed=1, callback=watched.callback, progress=False)
        assert watched.steps == [NOTHING] * 2
        assert not gpu.conversions
        assert gpu.peak_bytes < {"float32": 3.1, "float16": 1.7, "bfloat16": 2.7}[precision] * GIB


@pytest.mark.parametrize("is_merged", [False, True], ids=["live", "merged"])
@pytest.mark.parametrize("precision", ONE_FAST)
def test_adapters_convert_and_await_nothing(precision: str, is_merged: bool) -> None:
    with FakeCuda() as gpu:
        model = hollow_model(open_small(), gpu, precision)
        with gpu.hollow():
            attach_lora(model.module.model, LoraConfig(rank=4, adapter_type="dora-rows"), seed=1)
            if is_merged:
                merge_lora(model.module.model)
        gpu.conversions.clear()
        watched = watch_steps(gpu)
        model.generate(prompt="rain", steps=4, seed=1, callback=watched.callback, progress=False)
        assert watched.steps == [NOTHING] * 3
