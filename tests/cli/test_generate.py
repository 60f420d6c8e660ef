"""The commands `generate.py` and `reconstruct_audios.py`: flags, refusals, output for programs, torchrun, a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stable_audio_tools.cli import generate, reconstruct_audios
from stable_audio_tools.data.example_clips import write_example_clips

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_models import SmallModel, small_model

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
        ("../../x: {sound: rain, seconds_total: 1}", "'../../x' leads out of its folder; leave out '.' and '..'"),
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
        (["--ckpt-path", str(model.weights), "--batch-size", "0"], "batch_size: expected at least 1"),
        (["--ckpt-path", str(model.weights), "--format", "flac", "--bits", "32"], "flac holds 16 or 24 bits"),
        (["--ckpt-path", str(model.weights), "--format", "opus"], "opus has no sample rate of 22050 Hz"),
    ):
        assert generate.main([*base, *flags]) == 2, flags
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reconstruction_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model("tiny_autoencoder", tmp_path)
    write_example_clips(tmp_path / "clips", per_class=1)
    arguments = ["--model-config", model.config, "--ckpt-path", model.weights, "--device", "cpu"]
    arguments += ["--audio-dir", tmp_path / "clips", "--output-dir", tmp_path / "out", "--json"]
    assert reconstruct_audios.main([str(word) for word in arguments]) == 0
    *lines, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(lines) == 5 and {line["file"] for line in lines} == set(audio_files(tmp_path / "out"))
    assert summary["files"] == 5 and summary["failed"] == 0 and summary["mean"]["si_sdr"] is not None
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 7
    assert (tmp_path / "out" / "metrics.svg").read_text().count("<circle") == 15
    (tmp_path / "clips" / "broken.wav").write_bytes(b"x" * 100)
    assert reconstruct_audios.main([str(word) for word in arguments]) == 1
    assert reconstruct_audios.main(["--audio-dir", "x", "--output-dir", "y"]) == 2


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
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    before = audio_files(tmp_path / "two")
    assert 0 < len(before) < 9
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert audio_files(tmp_path / "two") == expected
    assert [path.name for path in (tmp_path / "two").rglob("*.part*")] == []
    assert (tmp_path / "two" / "manifest.jsonl").read_text() == (tmp_path / "one" / "manifest.jsonl").read_text()
