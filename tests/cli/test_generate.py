"""The commands `generate.py` and `reconstruct_audios.py`: flags, refusals, output for programs, torchrun, a kill."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import launching
from support.planted_songs import RATE, Style, compose
from support.small_models import SmallModel, small_model

from stable_audio_tools.cli import evaluate, generate
from stable_audio_tools.cli.data import dedup_index
from stable_audio_tools.core.config import load
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights

ROOT = Path(__file__).parents[2]

PROMPTS = "\n".join(f"group/{sound}: {{sound: {sound}, seconds_total: 1}}" for sound in ("drums", "bass", "rain"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model("tiny_diffusion_cond", tmp_path_factory.mktemp("models"))


def words(model: SmallModel, out: Path, prompts: Path, *more: str) -> list[str]:
    flags = ["--model-config", model.config, "--ckpt-path", model.weights, "--device", "cpu"]
    return [str(w) for w in (*flags, "--output-dir", out, "--cond-yaml-path", prompts, "--sample-steps", 2, *more)]


def audio_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


def test_files_and_lines_for_programs(model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(PROMPTS)
    arguments = words(model, tmp_path / "out", tmp_path / "p.yaml", "--n-sample-per-cond", "2", "--json")
    assert generate.main(arguments) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["file"] for record in records][:2] == ["group/drums_item-1.wav", "group/drums_item-2.wav"]
    assert len(records) == 6 and all(record["new"] for record in records)
    assert generate.main(arguments) == 0
    assert not any(json.loads(line)["new"] for line in capsys.readouterr().out.splitlines())
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("../../x: {sound: rain, seconds_total: 1}", "'../../x' leads out of its folder; remove '.' and '..'"),
        ("/x: {sound: rain, seconds_total: 1}", "'/x' is an absolute path"),
        ("a: {sound: rain, seconds_total: 1}\nA: {sound: rain, seconds_total: 1}", "would be one file"),
        ("a: {sund: rain, sound: rain, seconds_total: 1}", "sund: unknown key; did you mean 'sound'?"),
        ("a: {sound: 5, seconds_total: 1}", "sound: expected one of its names, got 5"),
        ("a: {sound: rain, seconds_total: 9}", "seconds_total: is 9 s, and the model makes at most 0.37 s"),
        ("", "is empty; write at least one prompt"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing_behind(
    model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: str, message: str
) -> None:
    (tmp_path / "p.yaml").write_text(prompts)
    assert generate.main(words(model, tmp_path / "out", tmp_path / "p.yaml")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_go_together(model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(PROMPTS)
    base = ["--output-dir", str(tmp_path / "out"), "--cond-yaml-path", str(tmp_path / "p.yaml")]
    for flags, message in (
        (["--model-config", str(model.config)], "--ckpt-path: missing"),
        (["--model-config", str(model.config), "--pretrained-name", "x/y"], "--pretrained-name: give it alone"),
        (["--ckpt-path", str(model.weights), "--device", "gpu"], "unknown device 'gpu'"),
        (["--ckpt-path", str(model.weights), "--sampler-type", "dpmpp-3m-sde"], "use euler, rk4, dpmpp, pingpong"),
        (["--ckpt-path", str(model.weights), "--batch-size", "0"], "--batch-size: expected at least 1"),
        (["--ckpt-path", str(model.weights), "--format", "flac", "--bits", "32"], "flac holds 16 or 24 bits"),
        (["--ckpt-path", str(model.weights), "--format", "opus"], "opus has no sample rate of 22050 Hz"),
    ):
        assert generate.main([*base, *flags]) == 2, flags
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_config_that_is_named_is_the_one_that_is_used(
    model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its name does not end in .json and the weights hold a config of their own."""
    (tmp_path / "p.yaml").write_text(PROMPTS)
    base = ["--output-dir", str(tmp_path / "out"), "--cond-yaml-path", str(tmp_path / "p.yaml")]
    (tmp_path / "model.conf").write_text("{}")
    for config, message in (
        (tmp_path / "absent", f"{tmp_path}/absent: no such file"),
        (tmp_path / "model.conf", "model_type: missing"),
        (tmp_path / "p.yaml", "p.yaml:1:1: not valid JSON"),
    ):
        assert generate.main([*base, "--model-config", str(config), "--ckpt-path", str(model.weights)]) == 2
        assert message in capsys.readouterr().err


LEAF = "a: {sound: rain, seconds_total: 1"


@pytest.mark.parametrize(
    ("name", "prompts", "flags", "message"),
    [
        ("tiny_diffusion_cond", LEAF + ", inpaint: [[0.2, 0.1]], inpaint_audio: tone.wav}", [], "0 <= start < end"),
        ("tiny_diffusion_cond", LEAF + ", inpaint: [[0.1, 0.2]]}", [], "no effect without inpaint_audio"),
        ("tiny_diffusion_cond", LEAF + ", init_noise_level: 0.5}", [], "no effect without init_audio"),
        ("tiny_diffusion_cond", LEAF + ", init_audio: p.yaml}", [], "init_audio: "),
        ("tiny_diffusion_cond", LEAF + "}", ["--sigma-min", "0.1"], "the sampler 'euler' does not use it"),
        ("tiny_diffusion_cond", LEAF + "}", ["--clip-length", "0.00001"], "less than a sample"),
        ("tiny_diffusion_cond", LEAF + "}", ["--cfg-scale", "nan"], "--cfg-scale: expected a finite number"),
        ("tiny_diffusion_cond", LEAF + "}", ["--keep-level"], "keep-level: needs mode"),
        ("tiny_diffusion_cond", LEAF + ", inpaint: [[0, 1]]}", ["--mode", "variation", "--audio", "tone.wav"], "mode"),
        ("tiny_diffusion_uncond", None, ["--cfg-scale", "3"], "no conditions to guide by"),
        ("tiny_diffusion_uncond", None, ["--sigma-min", "600"], "sigma_min must be less"),
        ("tiny_diffusion_uncond", None, ["--sampler-type", "k-dpm-fast", "--sample-steps", "1"], "at least 2 steps"),
        ("tiny_diffusion_uncond", None, ["--mode", "outpaint", "--audio", "tone.wav", "--seconds", "-1"], "seconds: "),
        ("tiny_diffusion_uncond", None, ["--mode", "outpaint", "--audio", "tone.wav", "--seconds", "0.1"], "already"),
        ("tiny_diffusion_uncond", None, ["--mode", "outpaint", "--audio", "tone.wav", "--seconds", "inf"], "seconds: "),
        ("tiny_lm", LEAF + "}", ["--decode-frames", "8"], "decode-frames: is for diffusion models"),
        ("tiny_lm", LEAF + "}", ["--keep-latents"], "keep-latents: is for diffusion models"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    prompts: str | None,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = small_model(name, tmp_path)
    audio_io.write(tmp_path / "tone.wav", 0.1 * torch.ones(2, 4000), 22050)
    given = ["--model-config", str(files.config), "--ckpt-path", str(files.weights), "--device", "cpu"]
    if name != "tiny_lm" and "--sample-steps" not in flags:
        given += ["--sample-steps", "2"]
    if prompts is not None:
        Path("p.yaml").write_text(prompts)
        given += ["--cond-yaml-path", "p.yaml"]
    assert generate.main([*given, "--output-dir", "out", *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.rglob("*_item-1.wav"))


def test_a_leaf_with_a_sampler_of_its_own_may_have_eta(tmp_path: Path) -> None:
    files = small_model("tiny_diffusion_uncond", tmp_path)
    (tmp_path / "p.json").write_text('{"a": {"sampler_type": "v-ddim"}}')
    given = ["--model-config", files.config, "--ckpt-path", files.weights, "--device", "cpu", "--sample-steps", 2]
    given += ["--cond-yaml-path", tmp_path / "p.json", "--output-dir", tmp_path / "out", "--eta", 0.5]
    assert generate.main([str(word) for word in given]) == 0


def test_chunks_of_a_few_frames(model: SmallModel, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROMPTS)
    assert generate.main(words(model, tmp_path / "out", tmp_path / "p.yaml", "--decode-frames", "8")) == 0


def test_a_gentle_variation_begins_below_the_usual_least_noise(tmp_path: Path) -> None:
    config = load(small_model("tiny_diffusion_cond", tmp_path).config)
    config["model"]["diffusion"]["diffusion_objective"] = "v"
    network = create_model_from_config(config)
    model = AudioModel(network, config, "cpu")
    tone = 0.5 * torch.sin(torch.arange(8192) * 0.05).expand(2, -1)
    for level in (0.02, 0.2):
        made = model.generate(sound="rain", init_audio=(22050, tone), init_noise_level=level, steps=3, seed=1)
        assert torch.isfinite(made.audio).all()


def test_reconstruction_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model("tiny_autoencoder", tmp_path)
    write_example_clips(tmp_path / "clips", per_class=1)
    arguments = ["--model-config", model.config, "--ckpt-path", model.weights, "--device", "cpu"]
    arguments += ["--audio-dir", tmp_path / "clips", "--output-dir", tmp_path / "out", "--json"]
    assert evaluate.reconstruct([str(word) for word in arguments]) == 0
    *lines, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(lines) == 5 and {line["file"] for line in lines} == set(audio_files(tmp_path / "out"))
    assert summary["files"] == 5 and summary["failed"] == 0 and summary["mean"]["si_sdr"] is not None
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 8
    assert (tmp_path / "out" / "metrics.svg").read_text().count("<circle") == 15
    (tmp_path / "clips" / "broken.wav").write_bytes(b"x" * 100)
    assert evaluate.reconstruct([str(word) for word in arguments]) == 1
    assert evaluate.reconstruct(["--audio-dir", "x", "--output-dir", "y"]) == 2


@pytest.mark.slow
def test_torchrun_killed_and_run_again_equals_one_process(model: SmallModel, tmp_path: Path) -> None:
    """Two processes are killed at once after the first file, and started again."""
    (tmp_path / "p.yaml").write_text(PROMPTS)
    more = ("--n-sample-per-cond", "3", "--batch-size", "2", "--sample-steps", "40", "--cfg-scale", "2")
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # left to what users have
    environment = {
        **{name: value for name, value in os.environ.items() if name not in threads},
        "PYTHONPATH": str(ROOT),
    }
    script = str(ROOT / "generate.py")
    one = [sys.executable, script, *words(model, tmp_path / "one", tmp_path / "p.yaml", *more)]
    subprocess.run(one, check=True, env=environment, capture_output=True)
    expected = audio_files(tmp_path / "one")
    assert len(expected) == 9

    arguments = words(model, tmp_path / "two", tmp_path / "p.yaml", *more)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        script,
        *arguments,
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    deadline = time.monotonic() + 120
    while not audio_files(tmp_path / "two") and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    launching.kill(started)
    started.wait()
    before = audio_files(tmp_path / "two")
    assert 0 < len(before) < 9
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert audio_files(tmp_path / "two") == expected
    assert [path.name for path in (tmp_path / "two").rglob("*.part*")] == []
    assert (tmp_path / "two" / "manifest.jsonl").read_text() == (tmp_path / "one" / "manifest.jsonl").read_text()


def test_one_prompt_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """`--prompt` names the file, `--seconds` cuts it, `--seed` is that of the first take."""
    config = load(small_model("tiny_diffusion_cond", tmp_path).config)
    for node in config["model"]["conditioning"]["configs"]:
        if node["id"] == "sound":
            node["id"] = "prompt"
    diffusion = config["model"]["diffusion"]
    diffusion |= {
        key: ["prompt" if id == "sound" else id for id in diffusion[key]] for key in diffusion if "_ids" in key
    }
    files = tmp_path / "model.json", tmp_path / "model.safetensors"
    files[0].write_text(json.dumps(config))
    save_weights(create_model_from_config(config).state_dict(), files[1])
    monkeypatch.chdir(tmp_path)
    base = ["--model-config", str(files[0]), "--ckpt-path", str(files[1]), "--device", "cpu", "--sample-steps", "1"]
    assert generate.main([*base, "--prompt", "rain", "--seconds", "0.1"]) == 0, capsys.readouterr().err
    assert audio_io.info(tmp_path / "rain.wav").frames == 2205
    assert generate.main([*base, "--prompt", "rain", "--out", "takes/a.flac", "--n-sample-per-cond", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "takes").iterdir()) == ["a-1.flac", "a-2.flac"]
    capsys.readouterr()
    assert generate.main([*base, "--prompt", "rain", "--output-dir", "out", "--seed", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 5
    assert (tmp_path / "out" / "manifest.jsonl").exists() and not (tmp_path / "manifest.jsonl").exists()
    (tmp_path / "p.yaml").write_text("a: {prompt: rain}")
    for flags, message in (
        (["--out", "a.wav", "--output-dir", "out"], "--out: needs --prompt"),
        ([], "--output-dir: missing; name the folder to write to, or give --prompt"),
        (["--prompt", "rain", "--out", "a.txt"], "--out: 'a.txt' must end in one of .wav, .flac"),
        (
            ["--prompt", "rain", "--out", "a.wav", "--output-dir", "out"],
            "--out: cannot be given together with",
        ),
        (
            ["--prompt", "rain", "--cond-yaml-path", "p.yaml"],
            "--prompt: cannot be given together with",
        ),
        (["--prompt", "rain", "--seconds", "9"], "seconds: is 9 s, and the model makes at most 0.37 s"),
        (
            ["--prompt", "rain", "--whole-window", "--clip-length", "1"],
            "--whole-window: cannot be given together",
        ),
    ):
        assert generate.main([*base, *flags]) == 2
        assert message in capsys.readouterr().err


def test_outputs_are_looked_up_in_the_training_set(
    model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A song of the training set that is extended counts as copied, and is silenced if that is asked for."""
    song = torch.from_numpy(compose(Style.draw(0), 0, 20.0)).float()[None].expand(2, -1)
    audio_io.write(tmp_path / "songs" / "song.wav", song, RATE)
    audio_io.write(tmp_path / "start.wav", song[:, : 6 * RATE], RATE)
    index = ["--index", str(tmp_path / "index"), "--dataset-dir", str(tmp_path / "songs"), "--num-workers", "1"]
    assert dedup_index(index) == 0
    (tmp_path / "p.yaml").write_text("a: {sound: rain, seconds_total: 1}")
    extend = ("--mode", "outpaint", "--audio", str(tmp_path / "start.wav"), "--seconds", "7", "--json")
    arguments = words(model, tmp_path / "out", tmp_path / "p.yaml", *extend, "--check-copies", str(tmp_path / "index"))

    def lines(*more: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert generate.main([*arguments, *more]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (line,) = lines()
    (copy,) = line["copies"]
    assert copy["track"] == "songs:song.wav" and copy["start"] < 1 and 4.5 < copy["end"] < 6.5
    assert lines()[0]["new"] is False and lines()[0]["copies"] == [copy]
    first, rate = audio_io.read(tmp_path / "out" / line["file"])
    (again,) = lines("--copies", "withhold")
    assert again["new"] is True and again["copies"] == [copy]
    silenced, _ = audio_io.read(tmp_path / "out" / line["file"])
    assert first[:, rate : 4 * rate].any() and not silenced[:, rate : 4 * rate].any()
    assert torch.equal(first[:, -rate // 4 :], silenced[:, -rate // 4 :])
    assert generate.main([*arguments[:-2], "--copies", "withhold"]) == 2
    assert "--copies withhold: needs --check-copies" in capsys.readouterr().err
