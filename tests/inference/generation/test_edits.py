"""Inpainting by any model, continuation without seams, interpolation between clips."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import small_model
from torch import Tensor, nn

import stable_audio_tools
from stable_audio_tools.cli.generate import main as generate
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_uncond
from stable_audio_tools.inference.generation.checks import validate
from stable_audio_tools.inference.generation.engine import GenerationEngine
from stable_audio_tools.inference.generation.interpolation import slerp
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import GenerationRequest
from stable_audio_tools.inference.sampling.samplers import SAMPLERS, samplers_for
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective
from stable_audio_tools.models.diffusion.objectives import Mix, parse_objective
from stable_audio_tools.models.factory import create_model_from_config

RATE, WINDOW, DEVIATION = 8000, 8192, 1.0
DDPM_NODE = {"type": "ddpm", "config": {}}


class Coloured(nn.Module):
    """The exact network for stationary noise of a known spectrum: what it makes is like what it is given."""

    io_channels = 1

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = parse_objective(objective)
        frequency = torch.fft.rfftfreq(WINDOW)
        self.register_buffer("power", DEVIATION**2 * 4 / (1 + (frequency / 0.05) ** 4))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
        alpha, sigma = (part[:, None, None].float() for part in self.objective.mix(t.double()))
        spectrum = torch.fft.rfft(x)
        gain = alpha * self.power / (alpha**2 * self.power + sigma**2)
        data = torch.fft.irfft(spectrum * gain, n=x.shape[-1])
        noise = torch.fft.irfft(spectrum * sigma / (alpha**2 * self.power + sigma**2), n=x.shape[-1])
        return self.objective.target(data, noise, Mix(alpha, sigma)) + self.scale


def coloured_model(objective: Any) -> AudioModel:
    config = {
        "model_type": "diffusion_uncond",
        "sample_rate": RATE,
        "sample_size": WINDOW,
        "audio_channels": 1,
        "model": {
            "type": "dit",
            "config": {"in_channels": 1, "embed_dim": 8, "depth": 1, "num_heads": 1},
            "diffusion_objective": objective,
        },
    }
    module = create_model_from_config(config)
    module.model = Coloured(module.objective)
    return AudioModel(module, config, "cpu")


def source(seconds: float, seed: int = 7) -> Tensor:
    """A draw from that spectrum."""
    count = round(seconds * RATE)
    white = torch.randn(1, count, generator=torch.Generator().manual_seed(seed))
    shape = DEVIATION * 2 / (1 + (torch.fft.rfftfreq(count) / 0.05) ** 4).sqrt()
    return torch.fft.irfft(torch.fft.rfft(white) * shape, n=count)


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [(objective, name) for objective in ("v", "rectified_flow") for name in samplers_for(objective)]
    + [(DDPM_NODE, name) for name in samplers_for(DDPMObjective())],
)
def test_the_kept_region_is_kept_by_every_sampler(build_model: Any, objective: Any, sampler: str) -> None:
    """Latents of a batch of two with several channels; what is not kept follows the seed."""
    model = build_model(objective if isinstance(objective, str) else dict(objective))
    audio = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)) * 0.1
    mask = torch.zeros(1, 256)
    mask[:, :128] = 1
    options: dict[str, Any] = {
        "conditioning": [{"mood": "calm", "tempo": 90}] * 2,
        "steps": 12 if not SAMPLERS[sampler].own_steps else 20,
        "batch_size": 2,
        "sample_size": 256,
        "device": "cpu",
        "cfg_scale": 2.0,
        "sampler_type": sampler,
        "return_latents": True,
        "progress": False,
        "inpaint_audio": (16000, audio),
    }
    made = generate_diffusion_cond(model, seed=[1, 2], inpaint_mask=mask, **options)
    with torch.random.fork_rng():
        everything = generate_diffusion_cond(model, seed=[1, 2], inpaint_mask=torch.ones(1, 256), **options)
    # The codec draws, and its draws are those of the seeds.
    # rk4 asks at t = 0 too, where nothing can be told; the adaptive ones stop short of it.
    tolerance = 0.06 if SAMPLERS[sampler].own_steps or sampler == "rk4" else 1e-3
    torch.testing.assert_close(made[..., :16], everything[..., :16], atol=tolerance, rtol=0)
    assert not torch.allclose(made[0, :, 16:], made[1, :, 16:], atol=0.05)


def test_unconditional_models_keep_audio_bit_for_bit(unconditional_model: Any) -> None:
    audio, mask = torch.randn(2, 256) * 0.1, torch.ones(1, 256)
    mask[:, 64:128] = 0
    made = generate_diffusion_uncond(
        unconditional_model,
        4,
        1,
        256,
        3,
        "cpu",
        inpaint_audio=(16000, audio),
        inpaint_mask=mask,
        keep_exact=True,
        crossfade_seconds=0.0,
        progress=False,
    )
    assert torch.equal(made[0, :, :64], audio[:, :64])
    assert torch.equal(made[0, :, 128:], audio[:, 128:])
    assert not torch.allclose(made[0, :, 64:128], audio[:, 64:128], atol=1e-3)
    with pytest.raises(ValueError, match="keep_exact needs inpaint_audio and inpaint_mask"):
        generate_diffusion_uncond(unconditional_model, 4, 1, 256, 3, "cpu", keep_exact=True)


def outpaint(model: AudioModel, audio: Any, seconds: float, **options: Any) -> Tensor:
    return model.generate(mode="outpaint", audio=audio, seconds=seconds, **options).audio


def spectral_flux(audio: Tensor) -> Tensor:
    """Rise of the magnitudes from frame to frame, (c, frames - 1)."""
    spectra = torch.stft(audio, 256, 64, window=torch.hann_window(256), return_complex=True).abs()
    return spectra.diff(dim=-1).clamp(min=0).norm(dim=1)


@pytest.mark.parametrize("objective", ["v", "rectified_flow", DDPM_NODE], ids=["v", "flow", "ddpm"])
def test_three_windows_on_there_are_no_seams(objective: Any) -> None:
    """Flux at the joins, and the level of every stretch, are within what the source itself has."""
    model = coloured_model(copy.deepcopy(objective))
    clip = source(1.024)
    made = outpaint(model, (RATE, clip), 3 * WINDOW / RATE, overlap=0.25, seed=5, steps=30, progress=False)[0]
    assert made.shape == (1, 3 * WINDOW)
    assert torch.equal(made[:, : WINDOW - 2000], clip[:, : WINDOW - 2000])
    flux, usual = spectral_flux(made)[0], spectral_flux(source(20))[0]
    joins = [WINDOW + index * (WINDOW - 2000) for index in range(3) if WINDOW + index * (WINDOW - 2000) < 3 * WINDOW]
    near = torch.cat([flux[(join - 1100) // 64 : (join + 200) // 64] for join in joins])
    assert near.max() < usual.max()
    assert near.mean() == pytest.approx(usual.mean().item(), rel=0.15)
    levels = made[0].unfold(0, 2048, 2048).std(1)
    assert (levels / source(20).std() - 1).abs().max() < 0.3


@pytest.mark.parametrize("seconds", [0.5, 3.1])
def test_a_variation_is_as_long_as_its_audio_and_follows_it(seconds: float) -> None:
    model, clip = coloured_model("v"), source(seconds)
    options: dict[str, Any] = {"mode": "variation", "audio": (RATE, clip), "steps": 30, "progress": False}
    near = model.generate(noise_level=0.05, seed=5, num_samples=2, **options).audio
    assert near.shape == (2, 1, clip.shape[-1]) and not torch.equal(near[0], near[1])
    far = model.generate(noise_level=50.0, seed=5, **options).audio
    assert (near[0] - clip).norm() < 0.3 * clip.norm() < (far[0] - clip).norm()
    windows = near[0, 0].unfold(0, 2048, 2048).std(1) / clip[0].unfold(0, 2048, 2048).std(1)
    assert (windows - 1).abs().max() < 0.3


def test_spans_of_audio_of_any_length() -> None:
    model, options = coloured_model("v"), {"steps": 10, "progress": False, "seed": 5, "mode": "inpaint"}
    for seconds, spans in ((0.5, [(0.1, 0.2)]), (4.0, [(0.02, 0.3), (2.0, 2.5), (3.8, 4.0)])):
        clip = source(seconds)
        made = model.generate(audio=(RATE, clip), spans=spans, crossfade=0.0, num_samples=2, **options).audio
        assert made.shape == (2, *clip.shape) and not torch.equal(made[0], made[1])
        kept = torch.ones(clip.shape[-1], dtype=torch.bool)
        for start, end in spans:
            kept[round(start * RATE) - 1 : round(end * RATE) + 1] = False
            anew = made[0, 0, round(start * RATE) : round(end * RATE)]
            assert not torch.allclose(anew, clip[0, round(start * RATE) : round(end * RATE)], atol=1e-3)
        assert torch.equal(made[0, :, kept], clip[:, kept])
    for spans, message in (([(3.0, 5.0)], "goes past the end of the audio"), ([(0.5, 3.5)], "is longer than the")):
        with pytest.raises(UserError, match=message):
            model.generate(audio=(RATE, source(4.0)), spans=spans, **options)


def test_songs_longer_than_the_window_are_inpainted_whole() -> None:
    """The published keywords for audio to keep do what the mode does."""
    model, clip, spans = coloured_model("v"), source(4.0), [(2.0, 2.5)]
    options: dict[str, Any] = {"steps": 5, "progress": False, "seed": 5}
    made = model.generate(inpaint_audio=(RATE, clip), inpaint=spans, **options)
    alike = model.generate(mode="inpaint", audio=(RATE, clip), spans=spans, **options)
    assert made.audio.shape[-1] == clip.shape[-1] and torch.equal(made.audio, alike.audio) and made.keeps_level
    with pytest.raises(ValueError, match="nothing is left to generate"):
        model.generate(inpaint_audio=(RATE, clip), **options)


def jump(audio: Tensor) -> float:
    """Step from the end of a loop to its start, in steps between other samples."""
    steps = audio.diff().abs()
    return float((audio[..., 0] - audio[..., -1]).abs() / steps.square().mean().sqrt())


@pytest.mark.parametrize("seconds", [1.0, 0.6, WINDOW / RATE / 3])
def test_a_loop_closes_without_a_step_and_keeps_its_middle(seconds: float) -> None:
    model, options = coloured_model("rectified_flow"), {"steps": 30, "num_samples": 8, "clip_length": seconds}
    plain, closed = (model.generate(seed=1, loop=loop, **options).audio for loop in (False, True))
    assert closed.shape == plain.shape
    # Steps of this noise are up to three times their mean; the ends of plain audio are independent.
    assert max(map(jump, closed)) < 3.5 and sum(jump(one) > 3.5 for one in plain) >= 4
    length = closed.shape[-1]
    reach = min(WINDOW // 8, length // 4) + round(0.02 * RATE) + 1
    assert torch.equal(closed[..., reach:-reach], plain[..., reach:-reach])
    assert not torch.allclose(closed[..., :100], plain[..., :100], atol=0.01)
    flux = spectral_flux(torch.cat([closed, closed], -1)[0])
    assert float(flux[len(flux) // 2 - 1 : len(flux) // 2 + 2].max()) < 1.5 * float(flux.max())


def test_a_loop_needs_a_window_and_no_latents() -> None:
    facts = coloured_model("v").facts
    problems = list(validate(GenerationRequest(loop=True, keep_latents=True), dataclasses.replace(facts, window=None)))
    assert any(problem.startswith("loop: the model's config names no sample_size") for problem in problems)
    assert "keep_latents: a loop is not decoded from its latents alone; remove it" in problems


def test_a_piece_of_sections_has_their_length_and_no_seams() -> None:
    model = coloured_model("rectified_flow")
    sections = [{"seconds": 0.6}, {"seconds": 1.9}, {"seconds": 0.75}]
    piece = model.generate(sections=sections, seed=3, steps=30, num_samples=2)
    assert piece.audio.shape == (2, 1, round(3.25 * RATE))
    flux, usual = spectral_flux(piece.audio[:, 0]), spectral_flux(source(20))
    assert flux.max() < usual.max()
    assert not torch.equal(piece.audio[0], piece.audio[1])


def test_each_section_is_generated_under_its_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The conditions of a window are those of the section that it continues into."""
    files = small_model("tiny_diffusion_cond", tmp_path)
    model = stable_audio_tools.load(files.config, files.weights, "cpu")
    seen: list[tuple[str, str]] = []
    conditioner = model.module.conditioner
    conditioner.register_forward_pre_hook(
        lambda module, args: seen.append(tuple(item["sound"] for item in args[0])) or None
    )
    sections = [{"sound": "rain", "seconds": 2}, {"sound": "drums", "seconds": 5}, {"sound": "bass", "seconds": 1}]
    piece = model.generate(sections=sections, seconds_total=2, seed=3, steps=1)
    assert piece.audio.shape[-1] == 8 * model.sample_rate
    names = [sound for (sound,) in dict.fromkeys(seen)]
    assert names == ["rain", "drums", "bass"] and seen.count(("drums",)) >= 2

    (tmp_path / "p.yaml").write_text(
        "song:\n  seconds_total: 2\n  loop: true\n  sections:\n"
        "    - {sound: rain, seconds: 2}\n    - {sound: drums, seconds: 1.5}\n"
    )
    flags = ["--model-config", str(files.config), "--ckpt-path", str(files.weights), "--device", "cpu"]
    flags += [
        "--cond-yaml-path",
        str(tmp_path / "p.yaml"),
        "--output-dir",
        str(tmp_path / "out"),
        "--sample-steps",
        "1",
    ]
    assert generate(flags) == 0 and generate(flags) == 0
    assert "kept" in capsys.readouterr().out
    assert audio_io.info(tmp_path / "out" / "song_item-1.wav").seconds == 3.5
    (tmp_path / "p.yaml").write_text("song: {seconds_total: 2, sections: [{sound: rain, seconds: -2}, {sund: rain}]}")
    assert generate(flags) == 2
    message = capsys.readouterr().err
    assert "song: sections[0].seconds: expected more than 0" in message
    assert "sections[1].sund: unknown key; did you mean 'sound'?" in message


def test_an_item_for_each_seed_without_conditions() -> None:
    model = coloured_model("v")
    options: dict[str, Any] = {"overlap": 0.5, "seed": (1, 2), "num_samples": 2, "steps": 5, "progress": False}
    made = outpaint(model, (RATE, source(1.024)), 1.5, **options)
    assert len(made) == 2 and not torch.equal(made[0], made[1])


def test_the_loudness_of_windows_is_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that loses the level, as mel images relative to their loudest pixel do."""
    model, generate = coloured_model("v"), GenerationEngine.generate
    monkeypatch.setattr(GenerationEngine, "generate", lambda *given: 0.4 * generate(*given))
    options: dict[str, Any] = {"overlap": 0.5, "seed": [5], "steps": 20, "progress": False}
    matched = outpaint(model, (RATE, source(1.024)), 2.0, **options)
    plain = outpaint(model, (RATE, source(1.024)), 2.0, keep_level=True, **options)
    assert matched[..., -4000:].std() == pytest.approx(source(20).std().item(), rel=0.25)
    assert plain[..., -4000:].std() < 0.5 * matched[..., -4000:].std()


def test_outpainting_says_what_it_cannot_do() -> None:
    model = coloured_model("v")
    with pytest.raises(UserError, match=r"the audio lasts 0.10 s, less than the overlap of 0.50 s"):
        outpaint(model, (RATE, source(0.1)), 2.0, overlap=0.5)
    for options, message in (
        ({"mode": "outpaint"}, "seconds: missing; the mode 'outpaint' needs it"),
        ({"mode": "inpaint"}, "spans: missing"),
        ({"mode": "variation", "overlap": 1.0}, "overlap: is for the mode outpaint, not for 'variation'"),
        ({"mode": "variation", "seconds": 1.0}, "seconds: the mode 'variation' leaves the length as it is"),
        ({"mode": "outpaint", "seconds": 3, "overlap": 9.0}, "overlap: expected more than 0 and less than the model's"),
    ):
        request = GenerationRequest(audio=(RATE, source(0.1)), **options)  # type: ignore[arg-type]
        assert any(message in text for text in validate(request, model.facts))


CLIPPED_NODE = {"type": "ddpm", "config": {"clip_sample": 0.5}}  # less than what the clips reach


@pytest.mark.parametrize(
    "objective", ["v", "rectified_flow", DDPM_NODE, CLIPPED_NODE], ids=["v", "flow", "ddpm", "clipped"]
)
def test_interpolation_meets_both_ends_and_keeps_the_level_between(objective: Any) -> None:
    model = coloured_model(copy.deepcopy(objective))
    ends = [source(1.024, seed) for seed in (1, 2)]
    made = model.interpolate((RATE, ends[0]), (RATE, ends[1]), (0.0, 0.5, 1.0), steps=100, progress=False).audio
    for index, end in ((0, ends[0]), (2, ends[1])):
        assert (made[index] - end).norm() < 0.1 * end.norm()
    assert made[1].std() == pytest.approx(ends[0].std().item(), rel=0.15)
    with pytest.raises(UserError, match="the model works on"):
        model.generate(mode="interpolate", audio=(RATE, source(4.0)), to_audio=(RATE, ends[1]), steps=1)
    with pytest.raises(ValueError, match="can be followed back to the noise"):
        model.interpolate(
            (RATE, ends[0]), (RATE, ends[1]), sampler_type="dpmpp-2m-sde" if objective == "v" else "pingpong"
        )


def test_slerp() -> None:
    first, second = torch.randn(2, 3, 4, 500)
    made = slerp(first, second, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(made[0], first[0])
    torch.testing.assert_close(made[2], second[2])
    assert made[1].std() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(slerp(first, first, torch.full((3,), 0.3)), first)  # no angle, no NaN


def test_the_command_edits_and_says_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate.py --mode`, on a model that is told nothing: no file of prompts is needed."""
    model = small_model("tiny_diffusion_uncond", tmp_path)
    for name in ("a", "b"):
        audio_io.write(tmp_path / f"{name}.wav", torch.rand(2, 8192) * 0.2 - 0.1, 22050)
    out = tmp_path / "out"
    base = ["--model-config", str(model.config), "--ckpt-path", str(model.weights), "--output-dir", str(out)]
    base += ["--sample-steps", "2", "--device", "cpu", "--audio", str(tmp_path / "a.wav")]
    for mode, more, seconds in (
        ("variation", ["--noise-level", "0.5"], 8192 / 22050),
        ("inpaint", ["--spans", "0.1-0.2"], 8192 / 22050),
        ("outpaint", ["--seconds", "0.6", "--overlap", "0.1"], 0.6),
        ("interpolate", ["--to-audio", str(tmp_path / "b.wav"), "--n-sample-per-cond", "2"], 8192 / 22050),
    ):
        assert generate([*base, "--overwrite", "--mode", mode, *more]) == 0, capsys.readouterr().err
        assert audio_io.info(out / "sample_item-1.wav").seconds == pytest.approx(seconds, abs=1e-3)
    assert (out / "sample_item-2.wav").is_file()
    capsys.readouterr()
    for more, message in (
        (["--mode", "inpaint", "--spans", "5-6"], "mode inpaint: spans: 5-6 goes past the end of the audio"),
        (["--mode", "inpaint"], "spans: missing; the mode 'inpaint' needs it"),
        (["--mode", "variation", "--clip-length", "1"], "clip_length: the mode 'variation' says how long files are"),
        (["--mode", "variation", "--eta", "0.5"], "eta: sampler_type 'dpmpp-3m-sde' does not use it"),
    ):
        assert generate([*base, "--overwrite", *more]) == 2
        assert message in capsys.readouterr().err
