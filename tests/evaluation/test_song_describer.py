"""Song Describer, step by step: references from a table and audio, and a checkpoint judged by them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import small_models
from support.small_sounds import RATE, tone

from stable_audio_tools.cli import evaluate
from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data.audio_io import write
from stable_audio_tools.evaluation.embedders import create_embedder, mean_vector
from stable_audio_tools.evaluation.embedding import read_audio
from stable_audio_tools.evaluation.metrics.frechet import frechet_distance, gaussian_of
from stable_audio_tools.evaluation.song_describer.captions import in_training_style, read_captions
from stable_audio_tools.evaluation.song_describer.references import matching_embedder, read_references
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_weights

WORDS = ("drums", "bass", "chords", "rain", "bells")
EMBEDDER = "logmel:bands=8,window_seconds=0.2"
TRACKS = (101, 203, 305, 407, 509, 1102)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tracks in MTG-Jamendo's folders, the first with three captions."""
    root = tmp_path_factory.mktemp("small-700")
    rows = []
    for index, track in enumerate(TRACKS):
        name = f"{track % 100:02d}/{track}.2min.wav"
        write(root / "audio" / name, tone(index, 1.2), RATE)
        for number in range(3 if index == 0 else 1):
            caption = WORDS[(index + number) % 5]
            rows.append([len(rows) + 1000, track, name, caption, 0.3 if index == 1 else 1.2])
    with (root / "song_describer.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["caption_id", "track_id", "path", "caption", "duration"], *rows])
    return root


def embed(dataset: Path, out: Path, *flags: str) -> int:
    words = ["--csv-path", str(dataset / "song_describer.csv"), "--audio-dir", str(dataset / "audio")]
    return evaluate.embed_song_describer([*words, "--output-path", str(out), "--device", "cpu", *flags])


@pytest.fixture(scope="module")
def references(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "references.npz"
    assert embed(dataset, path, "--embedder", EMBEDDER) == 0
    return path


@pytest.fixture(scope="module")
def model(caption_model: tuple[Path, Path]) -> tuple[Path, Path]:
    return caption_model


# ------------------------------------------------------------------ references


def test_references_hold_a_row_per_caption_and_embed_each_track_once(dataset: Path, references: Path) -> None:
    found = read_references(references)
    assert found.track_ids.tolist() == [101, 101, 101, 203, 305, 407, 509, 1102]
    assert found.prompts[:3] == ("drums", "bass", "chords")
    assert found.track_rows.tolist() == [0, 3, 4, 5, 6, 7]
    assert len(list((references.parent / "embeddings").rglob("*.npy"))) == len(TRACKS)
    embedder = create_embedder(EMBEDDER)
    wanted = mean_vector(embedder.frames(read_audio(dataset / "audio/03/203.2min.wav", embedder.sample_rate)))
    assert found.audio_embeddings[3].tobytes() == wanted.tobytes()
    assert (found.audio_embeddings[0] == found.audio_embeddings[2]).all()
    assert found.text_embeddings.shape == (8, 0) and not found.has_texts
    assert found.identity == embedder.identity


def test_prompts_are_chosen_from_as_many_tracks_as_there_are(references: Path) -> None:
    found = read_references(references)
    assert found.choose(3) == [0, 3, 4]
    assert found.choose(None) == [0, 3, 4, 5, 6, 7, 1, 2]
    assert found.choose(7)[-1] == 1
    with pytest.raises(UserError, match="at least 1 prompt"):
        found.choose(0)


def test_two_runs_and_two_processes_write_the_same_bytes(
    dataset: Path, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a" / "references.npz"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert embed(dataset, out, "--embedder", EMBEDDER, "--audio-batch-size", "3") == 0
    assert not out.exists()
    monkeypatch.setenv("RANK", "0")
    assert embed(dataset, out, "--embedder", EMBEDDER) == 0
    assert out.read_bytes() == references.read_bytes()


def test_the_published_layout_is_read_and_written(clap_folder: str, dataset: Path, tmp_path: Path) -> None:
    """Keys and types as in files of the Jamendo fork; such a file names its CLAP and nothing more."""
    path = tmp_path / "clap.npz"
    assert embed(dataset, path, "--clap-model-name", clap_folder) == 0
    with np.load(path, allow_pickle=False) as stored:
        data = {key: stored[key] for key in stored.files}
    assert data["clap_model_name"].tolist() == [clap_folder] and data["clap_sample_rate"].dtype == np.int32
    assert data["audio_embeddings"].shape == data["text_embeddings"].shape == (8, 512)
    assert data["caption_ids"].dtype == np.int64 and data["durations"].dtype == np.float32
    np.savez_compressed(tmp_path / "old.npz", **{key: value for key, value in data.items() if key != "embedder"})
    old, new = read_references(tmp_path / "old.npz"), read_references(path)
    assert old.identity is None and new.identity is not None
    assert old.prompts == new.prompts and (old.text_embeddings == new.text_embeddings).all()
    assert matching_embedder(old).source == clap_folder
    with pytest.raises(UserError, match=r"written by clap .*, and clap laion/larger_clap_music was asked for"):
        matching_embedder(old, {"type": "clap", "config": {"name": "laion/larger_clap_music"}})
    with pytest.raises(UserError, match="were not measured alike: embedder is 'clap' and 'logmel'"):
        matching_embedder(new, {"type": "logmel"})


def test_files_of_the_jamendo_fork_are_compared_as_whole_clips(clap_folder: str, dataset: Path, tmp_path: Path) -> None:
    assert embed(dataset, tmp_path / "new.npz", "--clap-model-name", clap_folder) == 0
    with np.load(tmp_path / "new.npz") as stored:
        fork = {key: stored[key] for key in stored.files if key != "embedder" and not key.startswith("window_")}
    np.savez_compressed(tmp_path / "fork.npz", **fork)
    old = read_references(tmp_path / "fork.npz")
    assert [one.shape for one in old.windows] == [(1, 512)] * len(TRACKS)
    assert matching_embedder(old).settings == {"clip": "whole"}
    with np.load(tmp_path / "new.npz") as stored:
        means = {key: stored[key] for key in stored.files if not key.startswith("window_")}
    np.savez_compressed(tmp_path / "means.npz", **means)
    with pytest.raises(UserError, match="contains means of windows only, which are not comparable"):
        read_references(tmp_path / "means.npz")


def test_the_number_of_windows_changes_no_score_by_itself() -> None:
    """A perfect model: windows of clips and of tracks from one law, five of each clip and twelve of each track."""
    from types import SimpleNamespace

    from stable_audio_tools.evaluation.settings import CaptionSampling
    from stable_audio_tools.evaluation.song_describer.generating import score_captions
    from stable_audio_tools.evaluation.song_describer.references import References

    generator = np.random.default_rng(0)
    texts = generator.normal(size=(80, 8)).astype(np.float32)

    def windows(count: int) -> list[np.ndarray]:
        return [(0.5 * text + generator.normal(size=(count, 8))).astype(np.float32) for text in texts]

    def scores(reference_windows: int, clip_windows: int) -> dict[str, float]:
        ids = np.arange(80)
        tracks = windows(reference_windows)
        means = np.stack([one.mean(0) for one in tracks])
        known = References(
            ids, ids, np.full(80, 30.0, np.float32), ("",) * 80, means, texts, tuple(tracks), {}, {"made": "here"}, "0"
        )
        run: Any = SimpleNamespace(
            references=known,
            embedder=create_embedder("logmel"),
            sampling=CaptionSampling(seed=0),
            seconds=lambda row: 30.0,
            seed=lambda row: row,
            sample_size=1,
        )
        result = score_captions(run, range(80), dict(enumerate(windows(clip_windows))), {"name": "perfect"})
        return {name: value for name, value in result.scores.items() if value is not None}

    for reference_windows, clip_windows in ((12, 5), (12, 1), (1, 12)):
        found = scores(reference_windows, clip_windows)
        assert found["logmel_fad_low"] < 0.1 and found["logmel_fad_inf_low"] < 0.1
        assert found["logmel_kernel_distance_low"] < 0.1 and found["logmel_kernel_distance_high"] > -0.1
        assert found["logmel_alignment_low"] < found["logmel_alignment_mean"] < found["logmel_alignment_high"]
        assert found["logmel_alignment_mean"] == pytest.approx(scores(1, 1)["logmel_alignment_mean"], abs=0.07)


def test_missing_and_broken_tracks_are_named_and_counted(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = tmp_path / "audio"
    for track in TRACKS[:3]:
        write(audio / f"{track % 100:02d}" / f"{track}.2min.wav", tone(track, 1.0), RATE)
    (audio / "03" / "203.2min.wav").write_bytes(b"no sound")
    words = ["--csv-path", str(dataset / "song_describer.csv"), "--audio-dir", str(audio), "--embedder", EMBEDDER]
    assert evaluate.embed_song_describer([*words, "--output-path", str(tmp_path / "out.npz")]) == 1
    told = capsys.readouterr()
    assert "4 captions of 2 tracks, 4 tracks skipped" in told.out
    assert "track 407: skipped (no audio; looked for" in told.err and "203.2min.wav: skipped" in told.err
    assert read_references(tmp_path / "out.npz").track_ids.tolist() == [101, 101, 101, 305]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--csv-path", "absent.csv"), "cannot be read as a table"),
        (("--audio-dir", "absent"), "no row has audio below absent"),
        (("--limit", "0"), "--limit: expected at least 1, got 0"),
        (("--clap-sample-rate", "44100"), "--clap-sample-rate: expected 48000, got 44100"),
        (("--embedder", "nothing"), "no embedder named 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: tuple[str, ...], sentence: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(dataset, tmp_path / "x.npz", *flags) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and sentence in told[0]
    assert not (tmp_path / "x.npz").exists()


def test_prompts_in_training_style_follow_seed_and_track(dataset: Path, tmp_path: Path) -> None:
    import random

    module = tmp_path / "style.py"
    module.write_text(
        "import random\n"
        "def get_custom_metadata(info, audio):\n"
        "    return {'prompt': f\"{random.randrange(10**9)} {info['relpath']}\"}\n"
    )
    captions, _ = read_captions(dataset / "song_describer.csv", dataset / "audio")
    random.seed(5)
    before = random.getstate()
    first = in_training_style(captions, 0, module)
    assert random.getstate() == before
    assert first == in_training_style(captions, 0, module) != in_training_style(captions, 1, module)
    assert len({caption.prompt for caption in first}) == len(TRACKS)  # the same for all captions of a track
    assert first[3].prompt.endswith("03/203.2min.wav")
    module.write_text("def get_custom_metadata(info, audio):\n    return {}\n")
    with pytest.raises(UserError, match="gives no prompt for it; use --prompt-source caption"):
        in_training_style(captions, 0, module)
    module.write_text("def get_custom_metadata(info, audio):\n    raise KeyError('no such track')\n")
    with pytest.raises(UserError, match="get_custom_metadata failed: KeyError: 'no such track'"):
        in_training_style(captions, 0, module)


def test_broken_tables_are_refused(dataset: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    for text, sentence in (("track_id,path\n1,a.wav\n", "no column caption_id, caption"),
                           ("caption_id,track_id,path,caption\n1,one,a.wav,x\n", "line 2: invalid literal"),
                           ("caption_id,track_id,path,caption\n1\n", "line 2: ")):  # fmt: skip
        table.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_captions(table, dataset / "audio")


def test_files_that_are_no_references_are_refused(references: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", prompts=np.array(["a"]))
    with np.load(references) as stored:
        np.savez(tmp_path / "nan.npz", **{**stored, "audio_embeddings": np.full((8, 3), np.nan)})
    for name, sentence in (("absent", "cannot be read"), ("text", "not an .npz file"), ("other", "lacks caption_ids"),
                           ("nan", "rows have different lengths or are not finite")):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            read_references(tmp_path / f"{name}.npz")


# ------------------------------------------------------------------ a checkpoint


def judge(model: tuple[Path, Path], references: Path, out: Path, *flags: str) -> Any:
    words = ["--model-config", str(model[0]), "--ckpt-path", str(model[1]), "--device", "cpu", "--output", str(out)]
    words += ["--precomputed-embeddings-path", str(references), "--steps", "2", *flags]
    assert evaluate.song_describer(words) == 0
    if not (out / "scores.json").exists():
        return None
    (result,) = json.loads((out / "scores.json").read_text())["results"]
    return result


def test_a_checkpoint_is_scored_with_all_that_tells_how(
    model: tuple[Path, Path], references: Path, tmp_path: Path
) -> None:
    result = judge(model, references, tmp_path)
    known, rows = read_references(references), read_references(references).choose(None)
    vectors = [np.load(path) for path in sorted((tmp_path / "vectors").rglob("*.npy"))]
    made = np.concatenate([vectors[row] for row in rows])  # the windows of all clips
    tracks = np.concatenate(known.windows)
    assert result["scores"]["logmel_fad"] == pytest.approx(
        frechet_distance(gaussian_of(tracks), gaussian_of(made)), rel=1e-9
    )
    assert result["scores"]["num_prompts"] == 8 and "logmel_alignment_mean" not in result["scores"]
    assert result["setup"]["sampling"] == {
        "steps": 2, "cfg_scale": 7.0, "sampler_type": "euler", "sigma_min": 0.01, "sigma_max": None, "seed": 0,
        "precision": "float32",
    }  # fmt: skip
    assert result["setup"]["references"]["tracks"] == len(TRACKS)
    table = list(csv.DictReader((tmp_path / "prompts.csv").open()))
    assert [int(row["track_id"]) for row in table][:6] == list(TRACKS)
    assert float(table[1]["seconds"]) == pytest.approx(0.3) and float(table[0]["seconds"]) == pytest.approx(
        8192 / 22050
    )


def test_a_killed_run_goes_on_and_processes_share(
    model: tuple[Path, Path], references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge(model, references, tmp_path / "whole", "--gen-batch-size", "4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert judge(model, references, tmp_path / "shared") is None  # half of the captions, as after a kill
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared" / "vectors").rglob("*.npy")}
    assert len(kept) == 4
    monkeypatch.setenv("RANK", "0")
    shared = judge(model, references, tmp_path / "shared", "--gen-batch-size", "3")
    assert shared["scores"] == whole["scores"] and shared["details"] == whole["details"]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    monkeypatch.setenv("WORLD_SIZE", "1")
    other = judge(model, references, tmp_path / "shared", "--seed", "7")
    assert other["scores"] != whole["scores"]


def test_a_model_that_makes_nan_is_told_with_its_caption(
    model: tuple[Path, Path], references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = create_model_from_config(load(model[0]))
    with torch.no_grad():
        next(made.pretransform.model.decoder.parameters()).fill_(float("nan"))
    save_weights(made, tmp_path / "nan.safetensors")
    words = ["--model-config", str(model[0]), "--ckpt-path", str(tmp_path / "nan.safetensors"), "--device", "cpu"]
    words += ["--precomputed-embeddings-path", str(references), "--steps", "1", "--output", str(tmp_path)]
    assert evaluate.song_describer(words) == 2
    assert "output of the model for caption 1000 ('drums'): the audio contains NaN" in capsys.readouterr().err


def test_agreement_with_captions_by_a_tiny_clap(
    model: tuple[Path, Path], clap_folder: str, dataset: Path, tmp_path: Path
) -> None:
    assert embed(dataset, tmp_path / "clap.npz", "--clap-model-name", clap_folder) == 0
    result = judge(model, tmp_path / "clap.npz", tmp_path / "out", "--limit", "3")
    scores, table = result["scores"], result["details"]["prompts"]
    assert -1 <= scores["clap_alignment_mean"] <= 1 and scores["clap_fad"] > 0
    assert scores["clap_alignment_mean"] == pytest.approx(np.mean([row["cosine"] for row in table]))
    assert [row["prompt"] for row in table] == ["drums", "bass", "chords"]
    assert len(result["setup"]["embedder"]["text_weights"]) == 16


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--steps", "0"), "--steps: expected at least 1, got 0"),
        (("--seed", "-2"), "--seed: expected -1 to 2147483647, got -2"),
        (("--limit", "0"), "--limit: expected at least 1, got 0"),
        (("--precomputed-embeddings-path", "absent.npz"), "absent.npz: cannot be read"),
        (("--clap-model-name", "laion/other"), "were not measured alike: embedder is 'logmel' and 'clap'"),
    ],
)
def test_mistakes_of_a_run_are_one_sentence(
    flags: tuple[str, ...], sentence: str, model: tuple[Path, Path], references: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["--model-config", str(model[0]), "--ckpt-path", str(model[1]), "--device", "cpu"]
    words += ["--precomputed-embeddings-path", str(references), "--output", str(tmp_path), *flags]
    assert evaluate.song_describer(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_model_without_prompts_is_refused(
    references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = small_models.small_model("tiny_diffusion_cond", tmp_path)
    words = ["--model-config", str(made.config), "--ckpt-path", str(made.weights), "--device", "cpu"]
    assert evaluate.song_describer([*words, "--precomputed-embeddings-path", str(references)]) == 2
    assert "takes no 'prompt' cannot be scored on captions" in capsys.readouterr().err
