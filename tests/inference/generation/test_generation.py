"""The generate functions on tiny models: what they give, what they leave alone, what they refuse."""

import copy
import logging
import threading

import pytest
import torch

from stable_audio_tools.inference.generation import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
)
from stable_audio_tools.inference.sampling.samplers import SAMPLERS
from stable_audio_tools.inference.sampling.watching import Cancelled

METADATA = [{"mood": "calm", "tempo": 90}, {"mood": "bright", "tempo": 160}]
CLIP = torch.sin(torch.arange(256) * 0.2).repeat(2, 1) * 0.5
SHIFT = {"base_shift": 0.5, "max_shift": 1.15, "min_length": 8, "max_length": 64}
# One pass over a batch and one over an item multiply matrices of other shapes, whose sums round differently.
ROUNDING = {"atol": 2e-4, "rtol": 2e-3}


def generate(model, **options):
    given = {"steps": 4, "cfg_scale": 3.0, "sample_size": 256, "seed": 5, "device": "cpu", "conditioning": METADATA[:1]}
    return generate_diffusion_cond(model, **{**given, **options})


def inpaint(model, **options):
    given = {"steps": 4, "cfg_scale": 3.0, "sample_size": 256, "seed": 5, "device": "cpu", "conditioning": METADATA[:1]}
    return generate_diffusion_cond_inpaint(model, **{**given, **options})


def objective_of(sampler: str) -> str | dict:
    objective = SAMPLERS[sampler].objectives[0].name
    return {"type": "ddpm", "config": {"prediction_type": "v"}} if objective == "ddpm" else objective


# ------------------------------------------------------------------ seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_prompts_in_a_batch_are_what_they_are_alone(build_model, sampler: str) -> None:
    """With a seed of their own each; the audio handed in is encoded by a VAE that draws."""
    model = build_model(objective_of(sampler))
    shared = {"sampler_type": sampler, "init_audio": (16000, CLIP), "init_noise_level": 0.9, "sigma_min": 0.05}
    both = generate(model, conditioning=METADATA, batch_size=2, seed=[3, 4], **shared)
    for index, seed in enumerate((3, 4)):
        alone = generate(model, conditioning=METADATA[index : index + 1], seed=seed, **shared)
        torch.testing.assert_close(both[index], alone[0], **ROUNDING)
    assert not torch.allclose(both[0], both[1], **ROUNDING)


def test_one_seed_gives_the_items_of_a_batch_different_noise(build_model) -> None:
    audio = generate(build_model("v"), batch_size=2)
    assert audio.shape == (2, 2, 256)
    assert not torch.allclose(audio[0], audio[1], **ROUNDING)
    assert torch.equal(audio, generate(build_model("v"), batch_size=2))


def test_drawn_seeds_are_logged_and_give_the_same_again(build_model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stable_audio_tools")
    first = generate(build_model("v"), seed=-1)
    seed = int(caplog.messages[-1].removeprefix("seed "))
    assert torch.equal(first, generate(build_model("v"), seed=seed))
    assert not torch.equal(first, generate(build_model("v"), seed=-1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_process_is_left_as_it_was(build_model, sampler: str) -> None:
    before = torch.get_rng_state()
    generate(build_model(objective_of(sampler)), sampler_type=sampler, init_audio=(8000, CLIP), init_noise_level=0.9)
    assert torch.equal(before, torch.get_rng_state())


def test_the_process_is_left_as_it_was_after_an_error(build_model) -> None:
    def fail(info) -> None:
        raise KeyError("from the callback")

    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="from the callback"):
        generate(build_model("v"), callback=fail, init_audio=(8000, CLIP), sampler_type="k-heun")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_no_gradients_are_kept(build_model) -> None:
    assert not generate(build_model("v")).requires_grad


# ------------------------------------------------------------------ conditions


def test_one_entry_is_for_all_items(build_model) -> None:
    model = build_model("rectified_flow")
    repeated = generate(model, conditioning=METADATA[:1] * 3, batch_size=3)
    torch.testing.assert_close(generate(model, conditioning=METADATA[:1], batch_size=3), repeated)
    torch.testing.assert_close(generate(model, conditioning=METADATA[0], batch_size=3), repeated)


def test_tensors_stand_in_for_metadata_and_stay_as_they_are(build_model) -> None:
    model = build_model("rectified_flow", inpainting=True)
    tensors = model.conditioner(METADATA[:1], "cpu")
    keys = list(tensors)
    expected = inpaint(model)
    assert torch.equal(inpaint(model, conditioning=None, conditioning_tensors=tensors), expected)
    assert list(tensors) == keys


def test_guidance_against_the_same_negative_is_no_guidance(build_model) -> None:
    model = build_model("rectified_flow")
    guided = generate(model, cfg_scale=4.0, negative_conditioning=METADATA[:1])
    torch.testing.assert_close(guided, generate(model, cfg_scale=1.0), **ROUNDING)
    assert not torch.allclose(generate(model, negative_conditioning=METADATA[1:]), generate(model), **ROUNDING)
    tensors = model.conditioner(METADATA[1:], "cpu")
    again = generate(model, negative_conditioning_tensors=tensors)
    assert torch.equal(again, generate(model, negative_conditioning=METADATA[1:]))


def test_guidance_options_reach_the_network(build_model) -> None:
    model = build_model("rectified_flow")
    guided, plain = generate(model), generate(model, cfg_scale=1.0)
    torch.testing.assert_close(generate(model, cfg_interval=(2.0, 3.0)), plain, **ROUNDING)
    torch.testing.assert_close(generate(model, batch_cfg=False), guided, **ROUNDING)
    assert not torch.allclose(generate(model, scale_phi=0.7), guided, **ROUNDING)


def test_audio_conditions_that_draw_do_so_by_item(build_config, made) -> None:
    """The reference clip of each item passes through the model's VAE."""
    config = build_config("rectified_flow", input_concat_ids=["reference"])
    config["model"]["diffusion"]["config"]["input_concat_dim"] = 4
    reference = {"sample_rate": 16000, "output_dim": 4, "use_model_pretransform": True}
    config["model"]["conditioning"]["configs"].append({"id": "reference", "type": "pretransform", "config": reference})
    model = made(config)
    given = [{**entry, "reference": CLIP * (index + 1)} for index, entry in enumerate(METADATA)]
    both = generate(model, conditioning=given, batch_size=2, seed=[3, 4])
    for index, seed in enumerate((3, 4)):
        alone = generate(model, conditioning=given[index : index + 1], seed=seed)
        torch.testing.assert_close(both[index], alone[0], **ROUNDING)


# ------------------------------------------------------------------ audio handed in


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "v-ddim", "euler", "dpmpp"])
def test_little_noise_changes_little(build_model, sampler: str) -> None:
    model = build_model(objective_of(sampler), pretransform=False)
    options = {"schedule": "linear", "sampler_type": sampler, "init_audio": (16000, CLIP)}
    near = generate(model, init_noise_level=0.01, **options)
    far = generate(model, init_noise_level=0.9, **options)
    assert (near[0] - CLIP).abs().max() < 0.2
    assert (far[0] - CLIP).std() > 5 * (near[0] - CLIP).std()


def test_audio_of_another_rate_length_and_channels(build_model) -> None:
    for audio in (CLIP[0], CLIP[:1, :100], torch.cat([CLIP, CLIP]), CLIP.expand(2, 2, 256)):
        made = generate(build_model("v"), init_audio=(8000, audio), init_noise_level=2.0, batch_size=2)
        assert made.shape == (2, 2, 256)
        assert made.isfinite().all()


# ------------------------------------------------------------------ schedules and precision


def test_a_distribution_shift_is_honoured_by_name_only(build_model) -> None:
    """The published numbers of a model that has one do not use it, but for rk4."""
    plain, shifted = build_model("rectified_flow"), build_model("rectified_flow", distribution_shift_options=SHIFT)
    for sampler in ("euler", "dpmpp", "pingpong"):
        assert torch.equal(generate(plain, sampler_type=sampler), generate(shifted, sampler_type=sampler))
        assert not torch.equal(
            generate(shifted, sampler_type=sampler, schedule="shifted"),
            generate(shifted, sampler_type=sampler, schedule="linear"),
        )
    assert torch.equal(generate(shifted, sampler_type="rk4"), generate(shifted, sampler_type="rk4", schedule="shifted"))
    assert torch.equal(generate(plain, sampler_type="rk4"), generate(plain, sampler_type="rk4", schedule="linear"))
    with pytest.raises(ValueError, match="'shifted' needs a model with distribution_shift_options"):
        generate(plain, schedule="shifted")


def test_half_precision_drifts_little(build_model) -> None:
    model = build_model("rectified_flow", pretransform=False)
    exact = generate(model)
    mixed = generate(model, precision="bf16")
    assert mixed.dtype == torch.float32
    # bfloat16 has eight bits: a part in 256 in each product, more after guidance by 3.
    assert 0 < (mixed - exact).std() < 0.05 * exact.std()
    halved = copy.deepcopy(model).to(torch.bfloat16)
    assert 0 < (generate(halved) - exact).std() < 0.1 * exact.std()


def test_offloading_changes_nothing(build_model) -> None:
    assert torch.equal(generate(build_model("v"), offload=True), generate(build_model("v")))


# ------------------------------------------------------------------ decoding


def test_latents_are_those_that_are_decoded(build_model) -> None:
    model = build_model("v")
    latents = generate(model, return_latents=True)
    assert latents.shape == (1, 4, 32)
    torch.testing.assert_close(model.pretransform.decode(latents), generate(model))


def test_decoding_in_chunks_sees_a_chunk_at_a_time_and_gives_the_same(build_model, monkeypatch) -> None:
    model = build_model("v")
    whole = generate(model, batch_size=2, sample_size=8 * 100)
    seen = []
    decode = model.pretransform.decode
    monkeypatch.setattr(model.pretransform, "decode", lambda z: (seen.append(tuple(z.shape)), decode(z))[1])
    # The decoder sees about twenty frames to either side: less than half of the overlap.
    chunked = generate(model, batch_size=2, sample_size=8 * 100, decode_frames=60, decode_overlap=48)
    assert set(seen) == {(1, 4, 60)}
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------ onlookers


def test_callback_progress_and_cancelling(build_model) -> None:
    model = build_model("rectified_flow")
    told, counts, event = [], [], threading.Event()
    generate(model, callback=told.append, progress=lambda done, total: counts.append((done, total)))
    assert [info["step"] for info in told] == [1, 2, 3, 4]
    assert counts == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(Cancelled):
        generate(model, cancel=event, callback=lambda info: event.set())


def test_nothing_is_printed(build_model, capfd: pytest.CaptureFixture) -> None:
    for sampler in ("dpmpp-3m-sde", "k-dpm-fast", "v-ddim"):
        generate(build_model("v"), sampler_type=sampler)
    generate(build_model("v"), progress=False)
    generate(build_model("v"), disable_tqdm=True)
    assert capfd.readouterr() == ("", "")


def test_a_bar_is_shown_on_a_terminal_only(build_model, monkeypatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    generate(build_model("v"), progress=False)
    assert capfd.readouterr().err == ""
    generate(build_model("v"))
    captured = capfd.readouterr()
    assert "sampling" in captured.err
    assert captured.out == ""


def test_threads_get_what_they_would_get_alone(build_model) -> None:
    """Each run encodes with a VAE, and k-heun draws noise that it does not use."""
    model = build_model("v")
    runs = [(seed, sampler) for seed, sampler in enumerate(["k-heun", "dpmpp-2m-sde", "k-dpmpp-2s-ancestral"] * 2)]
    shared = {"init_audio": (16000, CLIP), "init_noise_level": 2.0}
    alone = {run: generate(model, seed=run[0], sampler_type=run[1], **shared) for run in runs}
    together = {}

    def work(run: tuple[int, str]) -> None:
        together[run] = generate(model, seed=run[0], sampler_type=run[1], **shared)

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(together[run], alone[run]) for run in runs)


# ------------------------------------------------------------------ unconditional


@pytest.mark.parametrize("seed", [5, [5, 6]])
def test_unconditional_generation(unconditional_model, seed) -> None:
    options = {"steps": 4, "batch_size": 2, "sample_size": 256, "device": "cpu", "seed": seed}
    audio = generate_diffusion_uncond(unconditional_model, **options)
    assert audio.shape == (2, 2, 256)
    assert torch.equal(audio, generate_diffusion_uncond(unconditional_model, **options))
    varied = generate_diffusion_uncond(unconditional_model, init_audio=(8000, CLIP), init_noise_level=0.5, **options)
    assert not torch.allclose(audio, varied)
    latents = generate_diffusion_uncond(unconditional_model, return_latents=True, **options)
    assert latents.shape == (2, 4, 32)


# ------------------------------------------------------------------ inpainting


def test_kept_samples_stay_as_they_were(build_model) -> None:
    model = build_model("rectified_flow", inpainting=True)
    mask = (torch.arange(256) < 128).float()
    options = {"inpaint_audio": (16000, CLIP), "inpaint_mask": mask}
    made = inpaint(model, keep_exact=True, crossfade_seconds=10 / 16000, **options)
    assert torch.equal(made[0, :, :118], CLIP[:, :118])
    plain = inpaint(model, **options)
    assert torch.equal(made[0, :, 128:], plain[0, :, 128:])
    assert not torch.equal(plain[0, :, :118], CLIP[:, :118])


def test_what_is_not_kept_has_no_effect(build_model) -> None:
    """Neither on the rest: the network sees only what the mask keeps. The codec here looks at whole frames of eight."""
    model = build_model("rectified_flow", pretransform=False, inpainting=True)
    mask = (torch.arange(256) < 128).float()
    other = torch.where(mask.bool(), CLIP, -CLIP)
    first, second = (inpaint(model, inpaint_audio=(16000, clip), inpaint_mask=mask) for clip in (CLIP, other))
    assert torch.equal(first, second)
    changed = inpaint(model, inpaint_audio=(16000, -CLIP), inpaint_mask=mask)
    assert not torch.allclose(first, changed, **ROUNDING)


def test_one_mask_or_one_per_item(build_model) -> None:
    model = build_model("v", inpainting=True)
    mask = (torch.arange(256) < 128).float()[None]
    options = {"inpaint_audio": (16000, CLIP), "batch_size": 2, "init_audio": (16000, CLIP), "init_noise_level": 3.0}
    one = inpaint(model, inpaint_mask=mask, **options)
    assert torch.equal(one, inpaint(model, inpaint_mask=mask.repeat(2, 1), **options))
    two = inpaint(model, inpaint_mask=torch.cat([mask, 1 - mask]), **options)
    torch.testing.assert_close(two[0], one[0])
    assert not torch.allclose(two[1], one[1], **ROUNDING)


def test_without_audio_everything_is_generated(build_model) -> None:
    model = build_model("v", inpainting=True)
    options = {"sampler_type": "dpmpp-2m"}  # it draws nothing after the codec has
    nothing_kept = inpaint(model, inpaint_audio=(16000, CLIP), inpaint_mask=torch.zeros(1, 256), **options)
    assert torch.equal(inpaint(model, **options), nothing_kept)
    assert inpaint(model, batch_size=3, negative_conditioning=METADATA[1]).shape == (3, 2, 256)


def test_audio_without_a_mask_is_reported(build_model, caplog: pytest.LogCaptureFixture) -> None:
    inpaint(build_model("v", inpainting=True), inpaint_audio=(16000, CLIP))
    assert "inpaint_audio has no effect without inpaint_mask" in caplog.text


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "conditioning": METADATA}, "conditioning has 2 entries for batch_size 3"),
        ({"batch_size": 3, "negative_conditioning": METADATA}, "negative_conditioning has 2 entries for batch_size 3"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"conditioning": None}, "give conditioning .* or conditioning_tensors"),
        ({"conditioning": [{"mood": "calm"}]}, "no 'tempo'"),
        ({"seed": [1, 2]}, "seed lists 2 seeds for batch_size 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sample_size": 4}, "sample_size is 4, and the model works in steps of 8; use 8 or more"),
        ({"sampler_type": "rk4"}, "'rk4' is not for a model with the objective 'v'"),
        ({"schedule": "karras"}, "no schedule named 'karras'"),
        ({"sigma_max": -1.0}, "sigma_max: expected more than 0, got -1"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min must be less"),
        ({"init_audio": (CLIP, 16000)}, "init_audio must be a pair"),
        ({"init_audio": (16000, CLIP.expand(3, 2, 256)), "batch_size": 2}, "init_audio holds 3 clips for batch_size 2"),
        ({"init_audio": (16000, CLIP), "init_noise_level": -1}, "init_noise_level must be above 0"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"sampler_type": "v-ddim", "cond_fn": lambda *a, **k: 0}, "cond_fn works with k-diffusion's samplers only"),
    ],
)
def test_mistakes_are_named(build_model, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(build_model("v"), **options)


def test_conditions_for_another_batch_are_named(build_model) -> None:
    model = build_model("v")
    tensors = model.conditioner(METADATA, "cpu")
    with pytest.raises(ValueError, match="the condition 'mood' is for 2 items, and batch_size is 3"):
        generate(model, conditioning=None, conditioning_tensors=tensors, batch_size=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inpaint_mask": torch.ones(3, 256), "batch_size": 2}, r"\(2, samples\) for batch_size 2, got \(3, 256\)"),
        ({"inpaint_mask": torch.ones(1, 200)}, "inpaint_mask is 200 samples long, and sample_size is 256"),
        ({"keep_exact": True}, "keep_exact needs inpaint_audio and inpaint_mask"),
    ],
)
def test_mistakes_of_inpainting_are_named(build_model, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inpaint(build_model("v", inpainting=True), **options)


def test_a_model_that_cannot_inpaint_says_so(build_model) -> None:
    with pytest.raises(ValueError, match="this model cannot inpaint"):
        inpaint(build_model("v"), inpaint_audio=(16000, CLIP), inpaint_mask=torch.ones(1, 256))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_published_default_device_is_named_where_it_is_absent(build_model) -> None:
    with pytest.raises(ValueError, match="use 'cpu' or 'auto'"):
        generate(build_model("v"), device="cuda")
