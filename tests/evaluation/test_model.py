"""`evaluate model`: generated audio, its scores, earlier runs, and one page."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.launching import TORCHRUN, environment
from support.small_sounds import write_tones

from stable_audio_tools.cli import evaluate

WORDS = ("drums", "bass", "chords", "rain", "bells")
EMBEDDER = "logmel:bands=8,window_seconds=0.1"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"name": f"item_{index}", "prompt": WORDS[index % 5], "seconds_total": 0.3} for index in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("reference"), 10)


def flags(model: tuple[Path, Path], prompts: Path, reference: Path, out: Path, *more: str) -> list[str]:
    words = [
        "--model-config",
        str(model[0]),
        "--ckpt-path",
        str(model[1]),
        "--device",
        "cpu",
        "--prompts",
        str(prompts),
    ]
    words += ["--reference", str(reference), "--output", str(out), "--steps", "2", "--embedder", EMBEDDER]
    return [*words, *more]


def results(out: Path) -> Any:
    return json.loads((out / "scores.json").read_text())


@pytest.fixture(scope="module")
def first(
    caption_model: tuple[Path, Path], prompts: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert evaluate.model(flags(caption_model, prompts, reference, out, "--kernel")) == 0
    return out


def test_one_page_with_players_scores_and_settings(first: Path) -> None:
    (result,) = results(first)["results"]
    assert result["scores"]["fad_low"] <= result["scores"]["fad_high"] and result["subject"]["files"] == 8
    generation = result["setup"]["generation"]
    assert generation["steps"] == 2 and len(generation["weights"]) > 8 and "prompt" not in generation
    page = (first / "index.html").read_text()
    assert (
        page.count("<audio") == 8
        and 'src="audio/item_0_item-1.wav"' in page
        and "bells" in page
        and "generation.steps" in page
    )
    rows = list(csv.DictReader((first / "prompts.csv").open()))
    assert [row["prompt"] for row in rows][:5] == list(WORDS) and (first / "audio" / rows[7]["file"]).is_file()


def test_an_earlier_run_is_compared_over_the_prompts(
    caption_model: tuple[Path, Path], prompts: Path, reference: Path, first: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = ("--earlier", str(first), "--seed", "5", "--resamples", "100")
    assert evaluate.model(flags(caption_model, prompts, reference, tmp_path / "second", *more)) == 0
    document = results(tmp_path / "second")
    assert len(document["results"]) == 2 and [row["pairs"] for row in document["comparisons"]] == [8]
    assert document["comparisons"][0]["p"] > 0.01  # another seed of the same model
    told = capsys.readouterr().out
    assert "of resamples of 8 pairs" in told and "first" in told and "second" in told
    words = flags(caption_model, prompts, reference, tmp_path / "third", "--earlier", str(tmp_path / "absent"))
    assert evaluate.model(words) == 2
    assert "manifest.jsonl: cannot be read" in capsys.readouterr().err


def test_agreement_with_prompts_by_a_tiny_clap(
    caption_model: tuple[Path, Path], prompts: Path, reference: Path, clap_folder: str, tmp_path: Path
) -> None:
    clap = ("--embedder", f"clap:name={clap_folder}")
    assert evaluate.model(flags(caption_model, prompts, reference, tmp_path / "out", *clap)) == 0
    (result,) = results(tmp_path / "out")["results"]
    scores = result["scores"]
    assert -1 <= scores["alignment_low"] < scores["alignment_mean"] < scores["alignment_high"] <= 1
    rows = list(csv.DictReader((tmp_path / "out" / "prompts.csv").open()))
    assert sum(float(row["cosine"]) for row in rows) / 8 == pytest.approx(scores["alignment_mean"])


def test_a_run_resumes_and_two_processes_give_the_same_scores(
    caption_model: tuple[Path, Path], prompts: Path, reference: Path, first: Path, tmp_path: Path
) -> None:
    words = flags(caption_model, prompts, reference, tmp_path / "two", "--kernel", "--batch-size", "2")
    launch = [*TORCHRUN, "-m", "stable_audio_tools.cli.main", "evaluate", "model", *words]
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = results(first)["results"][0]["scores"]  # batches of another size round differently
    assert results(tmp_path / "two")["results"][0]["scores"] == pytest.approx(alone, rel=1e-4)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "audio").glob("*.wav")}
    (tmp_path / "two" / "audio" / "item_3_item-1.wav").unlink()
    assert evaluate.model(words) == 0
    again = {path: path.stat().st_mtime_ns for path in times}
    assert [path.stem for path in times if times[path] != again[path]] == ["item_3_item-1"]
