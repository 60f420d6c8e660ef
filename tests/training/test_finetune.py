"""From a folder of recordings to an adapter and a page, by one command."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from support.small_models import SmallModel, small_model

from stable_audio_tools.cli.main import main
from stable_audio_tools.core.config import load
from stable_audio_tools.models.lora import load_lora
from stable_audio_tools.models.pretrained import load_model
from stable_audio_tools.training.finetune import choose_plan, encode_clips, split_spans, write_captions

RATE = 22050


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model("tiny_text_to_audio", tmp_path_factory.mktemp("models"))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A long file, a short one with a prompt beside it, and one whose folder names it."""
    folder = tmp_path / "recordings"
    (folder / "glass bells").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sf.write(folder / "warm_pad-02.wav", rng.normal(0, 0.1, (40000, 2)), 2 * RATE)
    sf.write(folder / "b.wav", rng.normal(0, 0.1, (4000, 2)), RATE)
    (folder / "b.txt").write_text("a short hiss")
    sf.write(folder / "glass bells" / "001.flac", rng.normal(0, 0.1, 6000), RATE)
    return folder


def rows(output: Path) -> dict[str, str]:
    with (output / "captions.csv").open(newline="") as file:
        return {row["path"]: row["prompt"] for row in csv.DictReader(file)}


def words(recordings: Path, model: SmallModel, output: Path, *more: str) -> list[str]:
    return ["finetune", str(recordings), "--model", str(model.weights), "--output-dir", str(output), *more]


def test_recordings_become_clips_with_prompts_that_stay_as_edited(
    recordings: Path, model: SmallModel, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert main(words(recordings, model, output, "--prepare-only")) == 0
    found = rows(output)
    assert set(found.values()) == {"warm pad", "a short hiss", "glass bells"}
    lengths = [sf.info(output / path).duration for path in found]
    assert sum(lengths) == pytest.approx(30000 / RATE) and max(lengths) <= 8192 / RATE
    table = (output / "captions.csv").read_text().replace("warm pad", "slow warm pad")
    (output / "captions.csv").write_text(table)
    assert main(words(recordings, model, output, "--prepare-only")) == 0
    assert set(rows(output).values()) == {"slow warm pad", "a short hiss", "glass bells"}
    sf.write(recordings / "b.flac", np.random.default_rng(1).normal(0, 0.1, 3000), RATE)
    assert main(words(recordings, model, output, "--prepare-only")) == 0
    assert {"clips/b-000.wav", "clips/b_-000.wav"} <= set(rows(output))


def test_cuts_are_at_quiet_places() -> None:
    audio = np.ones(10000, np.float32)
    audio[3500:4100] = 0
    assert split_spans(audio[:4000], 4000) == [(0, 4000)]
    (start, cut), *rest = split_spans(audio, 4000, hop=100)
    assert start == 0 and 3500 <= cut < 4000
    assert rest[0][0] == cut and rest[-1][1] == 10000 and all(b - a <= 4000 for a, b in rest)


class Sources(HTMLParser):
    """The files that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_one_command_trains_an_adapter_and_writes_a_page(
    recordings: Path, model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(words(recordings, model, output, "--steps", "24", "--rank", "2", "--num-demos", "1")) == 0
    assert f"wrote {output / 'index.html'}" in capsys.readouterr().out
    page = Sources()
    content = (output / "index.html").read_text()
    page.feed(content)
    assert all((output / name).is_file() for name in page.found)
    audio = [name for name in page.found if name.endswith(".wav")]
    assert len(audio) == 2 and audio[0].endswith("_without_adapter.wav")
    before, after = (sf.read(output / name)[0] for name in audio)
    assert before.shape == after.shape and np.abs(before - after).max() > 0
    assert "<polyline" in content

    # The configs are ordinary ones, and the command of the run is written too.
    assert load(output / "dataset.json")["dataset_type"] == "pre_encoded"
    command = (output / "train.sh").read_text()
    assert re.match(r"python train_lora\.py .*--max-steps 24 ", command) and str(output / "model.json") in command
    (adapter,) = (path for path in page.found if path.endswith("00000024.safetensors"))
    loaded = load_model(None, model.weights)
    changed = load_lora(loaded, output / adapter)
    assert any(parameter.abs().max() > 0 for name, parameter in changed.named_factors() if name.endswith("lora_B"))

    # Prompts are part of the latents: edited ones are encoded again.
    assert len(list((output / "latents").iterdir())) == 1
    sidecars = sorted((output / "latents").glob("*/0/*.json"))
    assert {load(path)["prompt"] for path in sidecars} == set(rows(output).values())


def test_changed_prompts_and_recordings_are_encoded_again(recordings: Path, model: SmallModel, tmp_path: Path) -> None:
    output, config = tmp_path / "out", load(model.config)
    seconds = config["sample_size"] / config["sample_rate"]

    def folder() -> Path | None:
        return encode_clips(write_captions(recordings, output, seconds), output, config, model.weights)

    first = folder()
    assert first is not None and folder() == first
    table = output / "captions.csv"
    table.write_text(table.read_text().replace("a short hiss", "a long hiss"))
    edited = folder()
    assert edited not in (None, first)
    sf.write(recordings / "b.wav", np.random.default_rng(5).normal(0, 0.2, (4500, 2)), RATE)
    changed = folder()
    assert changed not in (None, first, edited)


def test_less_memory_means_smaller_batches_and_recomputation(model: SmallModel) -> None:
    config = load(model.config)
    sizes = [choose_plan(config, model.weights, 4, memory) for memory in (1e12, 3e6, 1.5e6, 1e3)]
    assert (sizes[0].batch_size, sizes[0].checkpointing) == (8, "off")
    assert [plan.needed for plan in sizes] == sorted((plan.needed for plan in sizes), reverse=True)
    assert (sizes[-1].batch_size, sizes[-1].checkpointing) == (1, "on")


@pytest.mark.parametrize("case", ["empty", "no prompt", "empty prompt", "columns"])
def test_mistakes_are_one_sentence(
    case: str, recordings: Path, model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, chosen, folder = tmp_path / "out", model, recordings
    if case == "empty":
        folder = tmp_path / "nothing"
        folder.mkdir()
    elif case == "no prompt":
        chosen = small_model("tiny_diffusion_cond", tmp_path)
    else:
        output.mkdir()
        text = "path,prompt\nclips/b-000.wav,\n" if case == "empty prompt" else "file,words\na,b\n"
        (output / "captions.csv").write_text(text)
    assert main(words(folder, chosen, output, "--prepare-only")) == 2
    sentence = {
        "empty": "holds no audio files; give a folder of recordings",
        "no prompt": "expected a diffusion model that takes a prompt",
        "empty prompt": "clips/b-000.wav has no prompt; write one",
        "columns": "expected the columns path and prompt, got file, words",
    }[case]
    assert sentence in capsys.readouterr().err
