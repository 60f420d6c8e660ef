"""The work of a batch: any number of processes, killed or not, leaves the same complete files."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_models import small_model

import stable_audio_tools
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import folder_lock
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.comments import read_comment
from stable_audio_tools.inference.batch.outputs import FORMATS, OutputFolder
from stable_audio_tools.inference.batch.plan import plan_batch
from stable_audio_tools.inference.batch.run import check_targets, is_as_asked, run_batch
from stable_audio_tools.inference.generation import editing
from stable_audio_tools.inference.generation.model import AudioModel, within_range
from stable_audio_tools.inference.generation.request import GenerationRequest

PROMPTS = """
music:
  drum: {sound: drums, seconds_total: 1}
  bass: {sound: bass, seconds_total: 1, seed: 5}
sfx:
  rain: {sound: rain, seconds_total: 1, steps: 3}
  bells: {sound: bells, seconds_total: 1}
"""
QUICK = GenerationRequest(steps=2, cfg_scale=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    made = small_model("tiny_diffusion_cond", tmp_path_factory.mktemp("models"))
    return stable_audio_tools.load(made.config, made.weights, device="cpu")


def generate(
    model: AudioModel,
    folder: Path,
    common: GenerationRequest = QUICK,
    prompts: str = PROMPTS,
    stop_after: int = 99,
    overwrite: bool = False,
) -> list[tuple[str, bool]]:
    folder.parent.mkdir(exist_ok=True, parents=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(prompts)
    told: list[tuple[str, bool]] = []

    def tell(record: dict[str, Any], is_new: bool) -> None:
        told.append((record["file"], is_new))
        if len(told) == stop_after:
            raise KeyboardInterrupt

    run_batch(model, plan_batch(path, model.facts, common, 4), OutputFolder(folder), tell, overwrite)
    return told


def audio_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


@pytest.fixture
def whole(model: AudioModel, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """What one process makes at one go."""
    generate(model, tmp_path / "whole")
    files = audio_files(tmp_path / "whole")
    assert list(files) == [
        "music/bass_item-1.wav",
        "music/drum_item-1.wav",
        "sfx/bells_item-1.wav",
        "sfx/rain_item-1.wav",
    ]
    yield files


def test_every_process_makes_its_share_once(
    model: AudioModel, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "shared", []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        told.append(generate(model, folder))
    assert sorted(name for name, _ in told[0] + told[1]) == sorted(whole)
    assert told[0] and told[1] and all(is_new for _, is_new in told[0] + told[1])
    assert audio_files(folder) == whole
    assert (folder / "manifest.jsonl").read_text() == (tmp_path / "whole" / "manifest.jsonl").read_text()


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_stopped_run_goes_on_where_it_was(
    model: AudioModel, whole: dict[str, bytes], tmp_path: Path, stop_after: int
) -> None:
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        generate(model, folder, stop_after=stop_after)
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    assert stop_after <= len(lines) == len(audio_files(folder)), "what was made is written"
    told = generate(model, folder)
    assert sum(not is_new for _, is_new in told) == len(lines)
    assert audio_files(folder) == whole


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_half_written_files_are_made_again(
    model: AudioModel, whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "whole"
    target = folder / "music" / "drum_item-1.wav"
    content = target.read_bytes()
    target.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\x07" * 5000}[damage])
    leftover = target.with_name(".drum_item-1.0a1b2c3d.part.wav")
    leftover.write_bytes(content[:100])
    told = dict(generate(model, folder))
    assert told["music/drum_item-1.wav"] and not told["music/bass_item-1.wav"]
    assert audio_files(folder) == whole and not leftover.exists()


def test_what_was_made_in_another_way_is_made_again(model: AudioModel, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    told = dict(generate(model, folder, prompts=PROMPTS.replace("sound: drums", "sound: chords")))
    assert [name for name, is_new in told.items() if is_new] == ["music/drum_item-1.wav"]
    assert all(is_new for _, is_new in generate(model, folder, overwrite=True))
    assert audio_files(folder) == whole


def test_files_of_others_are_not_touched(model: AudioModel, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "music" / "drum_item-1.wav"
    theirs.parent.mkdir(parents=True)
    audio_io.write(theirs, torch.zeros(1, 100), 8000)
    before = theirs.read_bytes()
    with pytest.raises(UserError, match="was not written by this command; move it, or pass --overwrite"):
        generate(model, tmp_path / "out")
    assert theirs.read_bytes() == before


def test_a_link_out_of_the_folder_is_refused(model: AudioModel, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "music").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link leads out of"):
        generate(model, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot be created as a folder"):
        OutputFolder(tmp_path / "out")


def test_each_item_is_what_the_api_gives(model: AudioModel, whole: dict[str, bytes], tmp_path: Path) -> None:
    records = [json.loads(line) for line in (tmp_path / "whole" / "manifest.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        alone = model.generate(
            conditions=record["conditions"],
            seed=record["seed"],
            steps=record["steps"],
            cfg_scale=record["cfg_scale"],
            sampler_type=record["sampler_type"],
        )
        wave = alone.audio[0] / alone.audio.abs().max().clamp(min=1)
        written = audio_io.read(tmp_path / "whole" / record["file"])
        # Half a step of 16 bits, and matrix products of another batch size.
        torch.testing.assert_close(written.samples, wave, rtol=0, atol=6e-5)
        assert record["seconds_made"] == pytest.approx(wave.shape[-1] / model.sample_rate, abs=1e-4)
    assert {record["steps"] for record in records} == {2, 3}
    assert next(r["seed"] for r in records if r["file"] == "music/bass_item-1.wav") == 5


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_carries_its_settings_and_is_kept(tmp_path: Path, format: str) -> None:
    """The rate must be one that opus has, so no model is involved."""
    output, file = OutputFolder(tmp_path), f"a/b_item-1.{format}"
    wave = 0.3 * torch.sin(torch.arange(48000) * 0.05)[None]
    settings = {"conditions": {"prompt": "dröhnende Trommel 鼓 " * 60}, "seed": 5}
    record = output.write(file, wave, 48000, settings)
    found = output.settings_of(file)
    assert found is not None and found.items() >= settings.items()
    assert json.loads(read_comment(tmp_path / file) or "")["seed"] == 5
    assert record["file"] == file and record["sample_rate"] == 48000
    assert record["seconds_made"] == pytest.approx(1.0, abs=0.1)  # lossy formats pad
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-3000])
    if format != "mp3":  # whose comment stands in front; its missing end is found where a header gives its length
        assert output.settings_of(file) is None


def test_random_seeds_are_kept_once_made(model: AudioModel, tmp_path: Path) -> None:
    settings = GenerationRequest(steps=1, seed=-1)
    generate(model, tmp_path / "out", settings)
    first = audio_files(tmp_path / "out")
    assert not any(is_new for name, is_new in generate(model, tmp_path / "out", settings))
    assert audio_files(tmp_path / "out") == first
    seeds = [json.loads(line)["seed"] for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert len(set(seeds)) == 4


def test_clip_length_cuts(model: AudioModel, tmp_path: Path) -> None:
    leaf = "a: {sound: rain, seconds_total: 1}\nb: {sound: rain, seconds_total: 0.2}"
    frames = []
    for clip_length in (False, None, True, 0.1):
        folder = tmp_path / f"clip-{clip_length}"
        generate(model, folder, GenerationRequest(steps=1, clip_length=clip_length), leaf)
        frames.append([audio_io.info(folder / f"{name}_item-1.wav").frames for name in "ab"])
    assert frames == [[8192, 8192], [8192, 4410], [8192, 4410], [2205, 2205]]


def test_init_and_inpainting_audio_of_a_leaf(tmp_path: Path) -> None:
    made = small_model("tiny_diffusion_cond_inpaint", tmp_path)
    model = stable_audio_tools.load(made.config, made.weights, device="cpu")
    tone = torch.rand(2, 8192) - 0.5
    audio_io.write(tmp_path / "tone.wav", tone, model.sample_rate, bits=32)
    leaves = """
kept: {sound: rain, seconds_total: 1, inpaint_audio: tone.wav, inpaint: [[0.1, 0.2]]}
varied: {sound: rain, seconds_total: 1, init_audio: tone.wav, init_noise_level: 0.1, n_sample_per_cond: 2}
"""
    told = generate(model, tmp_path / "out", GenerationRequest(steps=2, bits=32), leaves)
    assert [name for name, _ in told] == ["kept_item-1.wav", "varied_item-1.wav", "varied_item-2.wav"]
    kept = audio_io.read(tmp_path / "out" / "kept_item-1.wav").samples
    assert torch.equal(kept[:, :1000], tone[:, :1000])


@pytest.mark.parametrize("bits", [16, 32])
def test_kept_audio_keeps_its_level_where_the_rest_peaks(tmp_path: Path, bits: Any) -> None:
    made = small_model("tiny_diffusion_cond_inpaint", tmp_path)
    model = stable_audio_tools.load(made.config, made.weights, device="cpu")
    audio_io.write(tmp_path / "tone.wav", torch.rand(2, 8192) - 0.5, model.sample_rate, bits=bits)
    leaf = "a: {sound: rain, seconds_total: 1, inpaint_audio: tone.wav, inpaint: [[0.1, 0.2]], cfg_scale: 60}"
    generate(model, tmp_path / "out", GenerationRequest(steps=2, bits=bits), leaf)
    original = audio_io.read(tmp_path / "tone.wav").samples
    kept = audio_io.read(tmp_path / "out" / "a_item-1.wav").samples
    assert torch.equal(kept[:, :1000], original[:, :1000])
    assert kept.abs().max() > 0.99, "the middle is loud enough for the test to mean something"
    told = model.generate(
        sound="rain", inpaint_audio=tmp_path / "tone.wav", inpaint=[(0.1, 0.2)], cfg_scale=60, steps=2, seed=1
    )
    told.save(tmp_path / "again.wav")
    saved = audio_io.read(tmp_path / "again.wav").samples
    torch.testing.assert_close(saved[:, :1000], original[:, :1000], atol=1 / 32768, rtol=0)  # 16 bits


def test_other_source_audio_makes_a_file_anew(tmp_path: Path) -> None:
    made = small_model("tiny_diffusion_cond", tmp_path)
    model = stable_audio_tools.load(made.config, made.weights, device="cpu")
    leaf = "a: {sound: rain, seconds_total: 1, init_audio: tone.wav}"
    for seed, is_new in ((0, True), (0, False), (1, True)):
        noise = torch.rand(2, 8192, generator=torch.Generator().manual_seed(seed)) - 0.5
        audio_io.write(tmp_path / "tone.wav", noise, model.sample_rate)
        assert generate(model, tmp_path / "out", QUICK, leaf) == [("a_item-1.wav", is_new)]


def test_latents_are_kept_beside_their_audio(model: AudioModel, tmp_path: Path) -> None:
    settings = GenerationRequest(steps=2, keep_latents=True)
    told = generate(model, tmp_path / "out", settings)
    assert len(told) == 4
    latents = torch.from_numpy(np.load(tmp_path / "out" / "sfx" / "rain_item-1.npy"))
    heard = audio_io.read(tmp_path / "out" / "sfx" / "rain_item-1.wav").samples
    decoded = within_range(model.module.pretransform.decode(latents[None])[0])
    torch.testing.assert_close(heard, decoded, atol=1.1 / 32768, rtol=0)
    (tmp_path / "out" / "sfx" / "rain_item-1.npy").unlink()
    again = generate(model, tmp_path / "out", settings)
    assert [name for name, is_new in again if is_new] == ["sfx/rain_item-1.wav"]
    assert (tmp_path / "out" / "sfx" / "rain_item-1.npy").exists()


def test_what_stands_in_the_way_is_told_before_any_work(model: AudioModel, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROMPTS)
    batches = plan_batch(tmp_path / "p.yaml", model.facts, QUICK)
    for number, (name, message) in enumerate(
        (("sfx/rain_item-1.wav/x", "is a folder"), ("sfx", "is a file"), ("manifest.jsonl/x", "is a folder"))
    ):
        output = OutputFolder(tmp_path / str(number))
        (output.path / name).parent.mkdir(parents=True, exist_ok=True)
        (output.path / name).write_text("something")
        with pytest.raises(UserError, match=message):
            check_targets(batches, output)
    foreign = OutputFolder(tmp_path / "foreign")
    (foreign.path / "sfx").mkdir()
    audio_io.write(foreign.path / "sfx" / "rain_item-1.wav", torch.zeros(2, 100), model.sample_rate)
    with pytest.raises(UserError, match="was not written by this command"):
        check_targets(batches, foreign)
    check_targets(batches, foreign, overwrite=True)


def test_a_leaf_says_how_tokens_are_drawn(model: AudioModel, tmp_path: Path) -> None:
    made = small_model("tiny_lm", tmp_path)
    lm = stable_audio_tools.load(made.config, made.weights, device="cpu")
    leaves = """
likeliest: {sound: rain, seconds_total: 1, temp: 0, n_sample_per_cond: 2}
drawn: {sound: rain, seconds_total: 1, top_p: 0.9, n_sample_per_cond: 2}
"""
    generate(lm, tmp_path / "out", GenerationRequest(), leaves)
    heard = {path.stem: audio_io.read(path).samples for path in (tmp_path / "out").glob("*.wav")}
    assert torch.equal(heard["likeliest_item-1"], heard["likeliest_item-2"])
    assert not torch.equal(heard["drawn_item-1"], heard["drawn_item-2"])
    assert all(not is_new for _, is_new in generate(lm, tmp_path / "out", GenerationRequest(), leaves))
    with pytest.raises(UserError, match="temp: is for language models"):
        generate(model, tmp_path / "refused", QUICK, "a: {sound: rain, seconds_total: 1, temp: 0}")


def test_settings_out_of_range() -> None:
    for arguments, message in (
        ({"steps": 0}, "steps: expected 1 to 100000"),
        ({"seed": -2}, "seed: expected -1 to"),
        ({"sigma_max": 0.0}, "sigma_max: expected more than 0"),
        ({"sigma_max": float("inf")}, "sigma_max: expected a finite number"),
        ({"cfg_scale": float("nan")}, "cfg_scale: expected a finite number"),
        ({"scale_phi": 5.0}, "scale_phi: expected 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            GenerationRequest(**arguments)  # type: ignore[arg-type]


def test_files_of_whole_windows_from_before_are_complete(model: AudioModel, tmp_path: Path) -> None:
    """Files were as long as the window unless asked for otherwise, and nothing in them said so."""
    leaf = "b: {sound: rain, seconds_total: 0.2}"
    generate(model, tmp_path / "out", GenerationRequest(steps=1, clip_length=False), leaf)
    old = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert old["whole_window"] is True
    (again,) = generate(model, tmp_path / "out", GenerationRequest(steps=1), leaf)
    assert again[1], "an own choice of the whole window is another file"
    new = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert new["seconds"] == 0.2 and "whole_window" not in new
    before = {name: value for name, value in old.items() if name != "whole_window"}
    assert is_as_asked(before, {**before, "seconds": 0.2}) and is_as_asked(before, {**before, "whole_window": True})
    assert not is_as_asked(before, {**before, "seconds": 0.2, "steps": 2})
    assert not is_as_asked({**before, "seconds": 0.2}, {**before, "seconds": 0.3})


def test_prompts_of_other_lengths_share_a_batch(model: AudioModel, tmp_path: Path) -> None:
    """A model that reads its length fills the window, and each file is cut for itself."""
    (tmp_path / "p.yaml").write_text("a: {sound: rain, seconds_total: 0.1}\nb: {sound: rain, seconds_total: 0.2}")
    (batch,) = plan_batch(tmp_path / "p.yaml", model.facts, QUICK)
    assert len(batch) == 2


def test_two_runs_do_not_share_a_folder(model: AudioModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with folder_lock(tmp_path / "out"), pytest.raises(UserError, match="another run writes here"):
        generate(model, tmp_path / "out")
    assert len(generate(model, tmp_path / "out")) == 4
    assert not (tmp_path / "out" / ".in-use").exists()


def test_a_batch_is_written_while_the_next_one_is_generated(
    model: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_is_written, second_begins = threading.Event(), threading.Event()
    write, made = OutputFolder.write, []

    def waiting_write(self: OutputFolder, file: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        assert first_is_written.is_set() or second_begins.wait(60), "the next batch waits for this file"
        first_is_written.set()
        return write(self, file, *args, **kwargs)

    def watching_generate(*args: Any) -> torch.Tensor:
        made.append(args)
        if len(made) == 2:
            second_begins.set()
        return editing.generate(*args)

    monkeypatch.setattr(OutputFolder, "write", waiting_write)
    monkeypatch.setattr("stable_audio_tools.inference.batch.run.generate", watching_generate)
    path = tmp_path / "prompts.yaml"
    path.write_text(PROMPTS)
    run_batch(model, plan_batch(path, model.facts, QUICK, 1), OutputFolder(tmp_path / "made"))
    assert len(made) == 4 == len(audio_files(tmp_path / "made"))


def test_a_file_that_cannot_be_written_ends_the_run_in_one_sentence(
    model: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio_io, "write", full)
    with pytest.raises(UserError, match=r"drum.*cannot be written \(No space left on device\)"):
        generate(model, tmp_path / "made", prompts="drum: {sound: drums, seconds_total: 1}")
