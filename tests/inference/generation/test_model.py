"""`load(...).generate(...)` for every type of model: length, seeds, conditions, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import small_model

import stable_audio_tools
from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.inference.generation.model import AudioModel

RATE, WINDOW = 22050, 8192
TONE = (RATE, torch.sin(torch.arange(6000) * 0.05)[None])


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name: str) -> AudioModel:
        if name not in made:
            model = small_model(name, folder)
            made[name] = stable_audio_tools.load(model.config, model.weights, device="cpu")
        return made[name]

    return get


EVERY_TYPE = {
    "tiny_diffusion_cond": {"sound": "rain", "steps": 2},
    "tiny_diffusion_cond_inpaint": {"sound": "rain", "steps": 2},
    "tiny_diffusion_uncond": {"steps": 2},
    "tiny_autoencoder": {"init_audio": TONE},
    "tiny_codec": {"init_audio": TONE},
    "tiny_diffusion_autoencoder": {"init_audio": TONE, "steps": 2},
    "tiny_lm": {"sound": "rain"},
}


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_every_type_generates_the_asked_length_from_its_seed(loaded: Any, name: str) -> None:
    model = loaded(name)
    state = torch.get_rng_state()
    made = model.generate(seconds=0.2, seed=3, **EVERY_TYPE[name])
    assert torch.equal(torch.get_rng_state(), state), "the random state of the process changed"
    assert made.audio.shape == (1, 2, round(0.2 * RATE)) and made.audio.dtype == torch.float32
    assert made.sample_rate == RATE and made.seeds == (3,)
    assert torch.isfinite(made.audio).all() and made.audio.std() > 0
    again = model.generate(seconds=0.2, seed=3, **EVERY_TYPE[name])
    assert torch.equal(made.audio, again.audio)


@pytest.mark.parametrize("name", ["tiny_diffusion_cond", "tiny_lm"])
def test_an_item_does_not_depend_on_its_batch(loaded: Any, name: str) -> None:
    model = loaded(name)
    options: dict[str, Any] = {} if name == "tiny_lm" else {"steps": 3}
    both = model.generate(sound=["rain", "bells"], seconds=0.2, seed=5, **options)
    assert both.seeds == (5, 6)
    for item, sound in enumerate(["rain", "bells"]):
        alone = model.generate(sound=sound, seconds=0.2, seed=5 + item, **options)
        # Matrix products of another batch size add up in another order.
        torch.testing.assert_close(both.audio[item], alone.audio[0], rtol=0, atol=1e-5)
    assert not torch.allclose(both.audio[0], both.audio[1], atol=1e-2)


def test_items_of_a_language_model_share_each_pass(loaded: Any) -> None:
    model = loaded("tiny_lm")
    sizes: list[int] = []
    hook = model.module.lm.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    model.generate(sound="rain", seconds=0.2, seed=1)
    alone = len(sizes)
    model.generate(sound="rain", seconds=0.2, seed=1, num_samples=3)
    hook.remove()
    assert sizes == [1] * alone + [3] * alone


def test_a_clip_is_encoded_once_for_all_its_variations(loaded: Any) -> None:
    """The bottleneck draws for each item; the encoder before it draws nothing."""
    model = loaded("tiny_diffusion_cond")
    calls: list[int] = []
    encoder = model.module.pretransform.model.encoder
    asked: dict[str, Any] = {"sound": "rain", "steps": 1, "init_audio": TONE, "init_noise_level": 0.1}
    hook = encoder.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    several = model.generate(seed=[5, 6, 7], num_samples=3, **asked).audio
    hook.remove()
    assert calls == [1]
    alone = [model.generate(seed=seed, **asked).audio for seed in (5, 6, 7)]
    # Matrix products of another batch size add up in another order.
    torch.testing.assert_close(several, torch.cat(alone), rtol=0, atol=1e-5)


def test_reconstructions_that_draw_nothing_share_a_pass(loaded: Any) -> None:
    model = loaded("tiny_codec")
    calls: list[int] = []
    hook = model.module.encoder.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    made = model.generate(init_audio=TONE, seed=[1, 2, 3], num_samples=3).audio
    hook.remove()
    assert len(made) == 3 and calls == [1]


def test_it_gives_what_the_published_function_gives(loaded: Any) -> None:
    model = loaded("tiny_diffusion_cond")
    ours = model.generate(sound="bass", seconds_total=1, seed=11, steps=4, cfg_scale=3)
    theirs = generate_diffusion_cond(
        model.module,
        steps=4,
        cfg_scale=3,
        conditioning=[{"sound": "bass", "seconds_total": 1}],
        sample_size=WINDOW,
        seed=11,
        device="cpu",
        sampler_type="euler",
    )
    assert torch.equal(ours.audio, theirs)


def test_several_samples_of_each_prompt_have_seeds_of_their_own(loaded: Any) -> None:
    made = loaded("tiny_diffusion_cond").generate(sound=["rain", "bass"], num_samples=2, seed=[7, 1, 9, 1], steps=2)
    assert made.seeds == (7, 1, 9, 1) and len(made.audio) == 4
    drawn = loaded("tiny_diffusion_cond").generate(sound="rain", num_samples=2, steps=1)
    assert drawn.seeds[0] != drawn.seeds[1]


def test_inpainting_keeps_the_rest_bit_for_bit(loaded: Any) -> None:
    model = loaded("tiny_diffusion_cond_inpaint")
    audio = (RATE, torch.rand(2, WINDOW) - 0.5)
    made = model.generate(
        sound="rain", seed=1, steps=2, inpaint_audio=audio, inpaint=[(0.1, 0.2)], crossfade_seconds=0.01
    )
    start, end, fade = round(0.1 * RATE), round(0.2 * RATE), round(0.01 * RATE)
    assert torch.equal(made.audio[0, :, : start - fade], audio[1][:, : start - fade])
    assert torch.equal(made.audio[0, :, end + fade :], audio[1][:, end + fade :])
    assert not torch.allclose(made.audio[0, :, start:end], audio[1][:, start:end], atol=1e-2)


def test_without_spans_the_audio_is_continued(loaded: Any) -> None:
    model = loaded("tiny_diffusion_cond_inpaint")
    audio = (RATE, torch.rand(2, 4000) - 0.5)
    made = model.generate(sound="rain", seed=1, steps=2, inpaint_audio=audio)
    assert made.audio.shape[-1] == WINDOW
    assert torch.equal(made.audio[0, :, :3500], audio[1][:, :3500])
    assert made.audio[0, :, 4000:].std() > 0
    with pytest.raises(ValueError, match="nothing is left to generate"):
        model.generate(sound="rain", inpaint_audio=(RATE, torch.zeros(2, WINDOW)))


def test_variation_starts_from_the_audio(loaded: Any, tmp_path: Path) -> None:
    model = loaded("tiny_diffusion_cond")
    audio_io.write(tmp_path / "tone.wav", TONE[1], RATE, bits=32)
    common: dict[str, Any] = {"sound": "rain", "seed": 2, "steps": 2, "cfg_scale": 1}
    slight = model.generate(init_audio=tmp_path / "tone.wav", init_noise_level=0.05, **common).audio
    other = model.generate(init_audio=(RATE, TONE[1] * -1), init_noise_level=0.05, **common).audio
    assert torch.equal(slight, model.generate(init_audio=TONE, init_noise_level=0.05, **common).audio)
    assert not torch.allclose(slight, other, atol=1e-3)


def test_a_language_model_continues_codes(loaded: Any) -> None:
    model = loaded("tiny_lm")
    ratio = model.module.pretransform.downsampling_ratio
    made = model.generate(sound="rain", seconds=0.3, seed=1, init_audio=TONE, top_k=5)
    codes = model.module.pretransform.tokenize(TONE[1][None, :, : 6000 // ratio * ratio].expand(1, 2, -1))
    begin = model.module.pretransform.decode_tokens(codes)[0]
    # The receptive field of the decoder reaches from what follows into the last frames.
    assert torch.allclose(made.audio[0, :, : 6 * ratio], begin[:, : 6 * ratio], atol=1e-4)


def test_steps_are_told_and_a_run_can_be_cancelled(loaded: Any) -> None:
    import threading

    from stable_audio_tools.inference.sampling.watching import Cancelled

    told: list[int] = []
    loaded("tiny_diffusion_cond").generate(sound="rain", steps=3, progress=lambda done, total: told.append(done))
    assert told == [1, 2, 3]
    frames: list[tuple[int, int]] = []
    loaded("tiny_autoencoder").generate(
        init_audio=TONE, frame_seconds=0.2, progress=lambda done, total: frames.append((done, total))
    )
    assert len(frames) > 1 and frames == [(done, len(frames)) for done in range(1, len(frames) + 1)]
    stop = threading.Event()
    stop.set()
    for name in ("tiny_diffusion_cond", "tiny_lm"):
        with pytest.raises(Cancelled):
            loaded(name).generate(sound="rain", cancel=stop)
    with pytest.raises(Cancelled):
        loaded("tiny_autoencoder").generate(init_audio=TONE, cancel=stop)


def test_negative_prompts_and_other_conditions_are_checked_by_name(loaded: Any) -> None:
    model = loaded("tiny_diffusion_cond")
    assert model.conditions == ["sound", "seconds_total"]
    for arguments, message in (
        ({"sond": "rain"}, "sond: unknown; did you mean 'sound'"),
        ({}, "sound: missing; the model needs one of its names"),
        ({"sound": 3}, "sound: expected one of its names, got 3"),
        ({"sound": "rain", "prompt": "x"}, "prompt: unknown key"),
        ({"sound": "rain", "negative_prompt": "x"}, "this model takes no prompt; it takes sound, seconds_total"),
        ({"sound": "rain", "seconds": 30}, "seconds: is 30 s, and the model makes at most 0.37 s"),
        ({"sound": "rain", "seconds": -1}, "seconds: expected more than 0, got -1"),
        ({"sound": "rain", "seconds": 1e-9}, "less than a sample"),
        ({"sound": "rain", "seconds": 0.3, "sample_size": 4096}, "sample_size is only 0.18"),
        ({"sound": "rain", "seconds_total": -5}, "expected more than 0 seconds"),
        ({"sound": "rain", "init_noise_level": 0.5}, "init_noise_level: has no effect without init_audio"),
        ({"sound": "rain", "inpaint": [(0, 1)]}, "inpaint: has no effect without inpaint_audio"),
        ({"sound": "rain", "cfg_scale": float("nan")}, "cfg_scale: expected a finite number, got nan"),
        ({"sound": "rain", "scale_phi": 5.0}, "scale_phi: expected 0 to 1, got 5"),
        ({"sound": "rain", "cfg_interval": (0.8, 0.2)}, "guidance runs from noise level 0.8 to 0.2; exchange the two"),
        ({"sound": "rain", "cfg_interval": (0.0, 1.5)}, "expected two noise levels from 0 to 1"),
        ({"sound": "rain", "seconds": 0.5}, "seconds: is 0.5 s, and the model makes at most 0.37 s"),
        ({"sound": "rain", "temp": 1.0}, "temp: is for language models, and this is a model of type 'diffusion_cond'"),
        ({"sound": "rain", "audio": "a.wav"}, "audio: needs mode, which says what to do with the audio"),
        ({"sound": "rain", "seed": -5}, "seed: expected -1"),
        ({"sound": "rain", "seed": 1.5}, "seed: expected -1"),
        ({"sound": "rain", "seed": 2**70}, "seed: expected -1"),
        ({"sound": "rain", "num_samples": 0}, "num_samples must be at least 1"),
        ({"sound": ["a", "b"], "seconds_total": [1]}, "the lists must be equally long"),
        ({"sound": "rain", "seed": [1, 2]}, "seed lists 2 seeds for 1 items"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**arguments)
    with pytest.raises(ValueError, match="init_audio: missing; an autoencoder makes nothing by itself"):
        loaded("tiny_autoencoder").generate()
    for arguments, message in (
        ({"steps": 5}, "steps: is for models that denoise in steps, and this is a model of type 'lm'"),
        ({"temp": -1.0}, "temp: expected at least 0"),
        ({"top_k": -1}, "top_k: expected at least 0"),
        ({"top_p": 5.0}, "top_p: expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded("tiny_lm").generate(sound="rain", **arguments)


def test_lengths_beyond_the_window_are_told(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    loaded("tiny_diffusion_cond").generate(sound="rain", seconds_total=500, steps=1)
    assert "asks for 500 s, and the model generates the first 0.37 s" in caplog.text


def test_kept_samples_are_not_rounded_to_half_precision(tmp_path: Path) -> None:
    files = small_model("tiny_diffusion_cond_inpaint", tmp_path)
    tone = 0.5 * torch.sin(torch.arange(8192) * 0.05).expand(2, -1)
    model = stable_audio_tools.load(files.config, files.weights, "cpu", precision="float16")
    made = model.generate(sound="rain", inpaint_audio=(22050, tone), inpaint=[(0.1, 0.2)], steps=1, seed=1)
    assert torch.equal(made.audio[0, :, :1500], tone[:, :1500])


def test_progress_of_a_language_model_ends_at_its_frames(loaded: Any) -> None:
    told: list[tuple[int, int | None]] = []
    loaded("tiny_lm").generate(sound="rain", num_samples=2, progress=lambda done, total: told.append((done, total)))
    totals = {total for _, total in told}
    assert len(totals) == 1 and None not in totals
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == told[-1][1]


def test_a_name_outside_the_training_is_told(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    loaded("tiny_diffusion_cond").generate(sound="drum", steps=1)
    assert "not trained with 'drum'; did you mean 'drums'?" in caplog.text


def test_load_takes_folders_configs_and_weight_files(tmp_path: Path) -> None:
    model = small_model("tiny_autoencoder", tmp_path)
    (tmp_path / "model_config.json").write_text(model.config.read_text())
    (tmp_path / "model.safetensors").write_bytes(model.weights.read_bytes())
    ways: list[tuple[Any, Any]] = [
        (tmp_path, None),
        (tmp_path, model.weights),
        (model.weights, None),
        (model.config, model.weights),
        (str(model.config), model.weights),
        (load(model.config), model.weights),
    ]
    made = [stable_audio_tools.load(*way, device="cpu").generate(init_audio=TONE, seed=1).audio for way in ways]
    assert all(torch.equal(made[0], other) for other in made[1:])
    with pytest.raises(CheckpointError, match="a config alone has no weights"):
        stable_audio_tools.load(model.config)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["tiny_diffusion_cond", "tiny_lm", "tiny_autoencoder"])
def test_lower_precision_works_on_every_device(loaded: Any, tmp_path: Path, name: str, precision: str) -> None:
    model = small_model(name, tmp_path)
    half = stable_audio_tools.load(model.config, model.weights, device="cpu", precision=precision)
    options = {**EVERY_TYPE[name], **({"init_audio": TONE} if name == "tiny_autoencoder" else {})}
    made = half.generate(seconds=0.1, seed=3, **options).audio
    assert made.dtype == torch.float32 and torch.isfinite(made).all()
    if name == "tiny_diffusion_cond":  # the others draw other codes or noise
        reference = loaded(name).generate(seconds=0.1, seed=3, **options).audio
        # Eight bits of mantissa through two steps of a random network.
        assert 0 < (made - reference).abs().max() < 0.05 * reference.abs().max()


def test_the_fingerprint_follows_the_weights(loaded: Any, tmp_path: Path) -> None:
    first = loaded("tiny_autoencoder")
    model = small_model("tiny_autoencoder", tmp_path)
    second = stable_audio_tools.load(model.weights, device="cpu")
    assert first.fingerprint == second.fingerprint
    third = stable_audio_tools.load(model.weights, device="cpu")
    with torch.no_grad():
        next(third.module.parameters()).mul_(1.01)
    assert third.fingerprint != first.fingerprint


def test_save_writes_a_file_per_item(loaded: Any, tmp_path: Path) -> None:
    made = loaded("tiny_diffusion_cond").generate(sound="rain", num_samples=2, steps=1, seconds=0.1)
    paths = made.save(tmp_path / "rain.flac")
    assert [path.name for path in paths] == ["rain-1.flac", "rain-2.flac"]
    assert audio_io.info(paths[1]).frames == made.audio.shape[-1]
