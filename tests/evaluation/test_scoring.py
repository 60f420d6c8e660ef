"""`evaluate_fad.py`: sets × sets × embedders, files of fadtk, result files and their comparison."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_sounds import RATE, tone, write_tones

from stable_audio_tools.cli import evaluate
from stable_audio_tools.data.audio_io import write
from stable_audio_tools.evaluation.embedders import create_embedder
from stable_audio_tools.evaluation.embedding import embed_files, find_audio, read_audio
from stable_audio_tools.evaluation.metrics.frechet import frechet_distance, gaussian_of

EMBEDDER = "logmel:bands=8,window_seconds=0.25"  # few numbers, so that a second of sound fills a covariance


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_tones(root / "reference", 12)
    write_tones(root / "near", 8, first=20)
    for index in range(8):
        noise = torch.rand(1, RATE, generator=torch.Generator().manual_seed(index)) - 0.5
        write(root / "far" / f"tone_{index:02d}.wav", noise, RATE)
    return root


def score(root: Path, out: Path, *flags: str, generated: tuple[str, ...] = ("near", "far")) -> Any:
    words = ["--reference", str(root / "reference"), "--generated", *(str(root / name) for name in generated)]
    assert evaluate.fad([*words, "--embedder", EMBEDDER, "--output", str(out), "--device", "cpu", *flags]) == 0
    return json.loads((out / "scores.json").read_text())


def test_every_score_of_every_pair(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = score(sets, tmp_path, "--inf", "--per-song", "--kernel", "--coverage", "--paired")["results"]
    near, far = (result["scores"] for result in found)
    for name in ("fad", "fad_inf", "kernel_distance"):
        assert near[name] < far[name]
    assert near["density"] > far["density"] and near["coverage"] > far["coverage"] == 0
    assert near["kernel_low"] <= near["kernel_distance"] <= near["kernel_high"]
    assert near["mrstft"] > 0 and near["si_sdr"] < 0

    embedder = create_embedder(EMBEDDER)
    files = [embed_files(embedder, find_audio(sets / name), tmp_path / "own") for name in ("reference", "near")]
    gaussians = [gaussian_of(one.all_frames) for one in files if one is not None]
    assert near["fad"] == pytest.approx(frechet_distance(*gaussians), rel=1e-12)
    songs = found[0]["details"]["per_song"]
    one = gaussian_of(files[1].frames["tone_03.wav"])  # type: ignore[union-attr]
    assert songs["tone_03.wav"] == pytest.approx(frechet_distance(gaussians[0], one), rel=1e-12)
    assert list(songs.values()) == sorted(songs.values(), reverse=True) and len(songs) == 8

    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [float(row["fad"]) for row in rows] == [near["fad"], far["fad"]]
    assert len(list((tmp_path / "per_song").glob("*.csv"))) == 2
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 1 + 2 + 2 and "n = ∞" in page and "tone_03.wav" in page
    assert f"{near['fad']:.5g}" in capsys.readouterr().out


def test_a_result_says_how_it_was_measured(sets: Path, tmp_path: Path) -> None:
    document = score(sets, tmp_path, generated=("near",))
    (result,) = document["results"]
    assert set(document["software"]) >= {"stable-audio-tools", "torch", "numpy"}
    assert result["setup"]["embedder"] == create_embedder(EMBEDDER).identity
    assert result["setup"]["embedder"]["weights"] == "none" and result["setup"]["seed"] == 0
    assert result["setup"]["reference"]["vectors"] == 12 * 6
    assert result["subject"]["files"] == 8 and result["subject"]["vectors"] == 8 * 6


def test_runs_are_repeatable_whatever_the_batch_and_the_processes(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--inf", "--kernel")
    score(sets, tmp_path / "a", *flags, "--batch-size", "1", "--num-workers", "1")
    score(sets, tmp_path / "b", *flags, "--batch-size", "5", "--num-workers", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    words = ["--reference", str(sets / "reference"), "--generated", str(sets / "near"), str(sets / "far")]
    assert evaluate.fad([*words, "--embedder", EMBEDDER, "--output", str(tmp_path / "c"), *flags]) == 0
    assert not (tmp_path / "c" / "scores.json").exists()  # the other half is missing
    monkeypatch.setenv("RANK", "1")
    score(sets, tmp_path / "c", *flags)
    one, two, three = ((tmp_path / name / "scores.json").read_bytes() for name in "abc")
    assert one == two == three
    vectors = [sorted((tmp_path / name / "embeddings").rglob("*.npy")) for name in "abc"]
    assert [p.read_bytes() for p in vectors[0]] == [p.read_bytes() for p in vectors[1]]
    assert [p.read_bytes() for p in vectors[0]] == [p.read_bytes() for p in vectors[2]]


def test_equal_sets_are_at_zero_and_another_seed_changes_what_is_drawn(sets: Path, tmp_path: Path) -> None:
    (same,) = score(sets, tmp_path / "same", "--inf", generated=("reference",))["results"]
    assert same["scores"]["fad"] == pytest.approx(0, abs=1e-9)
    (other,) = score(sets, tmp_path / "same", "--inf", "--seed", "1", generated=("reference",))["results"]
    assert other["scores"]["fad_inf"] != same["scores"]["fad_inf"]


def test_bad_files_are_named_and_counted(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tones(tmp_path / "some", 3)
    (folder / "broken.wav").write_bytes(b"no sound")
    words = ["--reference", str(sets / "reference"), "--generated", str(folder), "--embedder", EMBEDDER]
    assert evaluate.fad([*words, "--output", str(tmp_path / "out")]) == 1
    (result,) = json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
    assert list(result["subject"]["failed"]) == ["broken.wav"] and result["subject"]["files"] == 3
    assert "broken.wav" in (tmp_path / "out" / "index.html").read_text()
    words[1], words[3] = words[3], words[1]
    assert evaluate.fad([*words, "--output", str(tmp_path / "out")]) == 1  # of the reference set too
    (row,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert row["failed"] == "1"


@pytest.mark.parametrize(
    ("make", "flags", "sentence"),
    [
        (lambda d: None, (), "no such folder"),
        (lambda d: d.mkdir(), (), "contains no audio files"),
        (lambda d: (d.mkdir(), (d / "x.wav").write_bytes(b"x")), (), "none of 1 files could be embedded"),
        (lambda d: write(d / "x.wav", tone(0, 0.2), RATE), (), "a covariance needs at least 2 frames, got 1"),
        (lambda d: write_tones(d, 1), ("--inf",), "needs at least 8 files, got 1"),
        (lambda d: write_tones(d, 1), ("--batch-size", "0"), "--batch-size: expected at least 1, got 0"),
    ],
    ids=["missing", "empty", "unreadable", "one window", "too few", "batch of none"],
)
def test_a_mistake_is_one_sentence(
    make: Any, flags: tuple[str, ...], sentence: str, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "set")
    words = ["--reference", str(sets / "reference"), "--generated", str(tmp_path / "set"), "--embedder", EMBEDDER]
    assert evaluate.fad([*words, "--output", str(tmp_path / "out"), *flags]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and sentence in told[0]


# ------------------------------------------------------------------ files of fadtk


def write_as_fadtk(folder: Path, name: str, frames: dict[str, np.ndarray]) -> None:
    (folder / "embeddings" / name).mkdir(parents=True)
    for stem, array in frames.items():
        np.save(folder / "embeddings" / name / f"{stem}.npy", array.astype(np.float16))


def test_caches_and_statistics_of_fadtk_are_read(sets: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sides = {side: {f"s{i}": generator.normal(size=(9, 16)) for i in range(6)} for side in ("ref", "gen")}
    for side, frames in sides.items():
        write_as_fadtk(tmp_path / side, "logmel", frames)
    whole = [np.concatenate(list(frames.values())).astype(np.float16).astype(np.float64) for frames in sides.values()]
    wanted = frechet_distance(*(gaussian_of(array) for array in whole))
    packed = {"logmel.mu": whole[0].mean(0), "logmel.cov": np.cov(whole[0], rowvar=False), "other.mu": np.zeros(2)}
    np.savez(tmp_path / "packed.npz", **packed)
    stats = tmp_path / "stats_only" / "stats" / "logmel"
    stats.mkdir(parents=True)
    np.save(stats / "mu.npy", packed["logmel.mu"])
    np.save(stats / "cov.npy", packed["logmel.cov"])
    references = [str(tmp_path / name) for name in ("ref", "packed.npz", "stats_only")]
    words = ["--reference", *references, "--generated", str(tmp_path / "gen"), "--read-fadtk", "--per-song"]
    assert evaluate.fad([*words, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
    assert [result["scores"]["fad"] for result in found] == pytest.approx([wanted] * 3, rel=1e-6)
    assert all(len(result["details"]["per_song"]) == 6 for result in found)
    for side in ("ref", "gen"):  # vectors of an embedder whose weights are not here
        (tmp_path / side / "embeddings" / "logmel").rename(tmp_path / side / "embeddings" / "vggish")
    words = ["--reference", references[0], "--generated", str(tmp_path / "gen"), "--read-fadtk"]
    assert evaluate.fad([*words, "--embedder", "vggish", "--output", str(tmp_path / "out")]) == 0
    (result,) = json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
    assert result["scores"]["fad"] == pytest.approx(wanted, rel=1e-6)
    assert result["setup"]["embedder"] == {"embedder": "vggish"} and result["setup"]["made_by"] == "fadtk"


def test_statistics_of_another_embedder_are_refused(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "packed.npz", **{"vggish.mu": np.zeros(2), "vggish.cov": np.eye(2)})
    words = ["--reference", str(tmp_path / "packed.npz"), "--generated", str(sets / "near")]
    assert evaluate.fad([*words, "--output", str(tmp_path / "out")]) == 2
    assert "contains no statistics of embedder 'logmel'" in capsys.readouterr().err
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    words[1] = str(tmp_path / "bad.npz")
    assert evaluate.fad([*words, "--output", str(tmp_path / "out")]) == 2
    assert "cannot be read as a file of statistics" in capsys.readouterr().err


def test_kl_of_pairs_comes_from_a_classifier(sets: Path, tmp_path: Path) -> None:
    """AST with five classes and random weights: the divergence of a set from itself is zero, else that of the means."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    config = ASTConfig(num_labels=5, max_length=128, num_mel_bins=32, **sizes)
    ASTForAudioClassification(config).save_pretrained(tmp_path / "ast")
    ASTFeatureExtractor(max_length=128, num_mel_bins=32).save_pretrained(tmp_path / "ast")
    name = f"classifier:name={tmp_path / 'ast'},window_seconds=0.5"
    other_set = write_tones(tmp_path / "other", 8, first=40)
    words = ["--reference", str(sets / "near"), "--generated", str(sets / "near"), str(other_set), "--paired"]
    assert evaluate.fad([*words, "--embedder", name, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    same, other = json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
    assert abs(same["scores"]["kl"]) < 1e-5 < other["scores"]["kl"]
    assert other["scores"]["kl_low"] < other["scores"]["kl"] < other["scores"]["kl_high"]

    embedder = create_embedder(name)
    logits = [
        torch.stack([torch.from_numpy(embedder.frames(read_audio(path, 16000))).mean(0) for path in files.values()])
        for files in (find_audio(sets / "near"), find_audio(other_set))
    ]
    reference, generated = (torch.softmax(values.double(), 1) for values in logits)
    divergence = generated * (generated.log() - (reference + 1e-6).log())
    assert other["scores"]["kl"] == pytest.approx(float(divergence.sum(1).mean()), rel=1e-3)


def test_scalars_for_tensorboard(sets: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (result,) = score(sets, tmp_path / "o", "--log-dir", str(tmp_path / "log"), "--log-step", "7", generated=("near",))[
        "results"
    ]
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    (tag,) = events.Tags()["scalars"]
    assert tag.startswith("fad_logmel-bands") and tag.endswith("_ref_reference_gen_near")
    (event,) = events.Scalars(tag)
    assert (event.step, event.value) == (7, pytest.approx(result["scores"]["fad"], rel=1e-6))


def test_statistics_of_stable_audio_metrics_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    frames = {f"s{i}": generator.normal(size=(9, 16)) for i in range(6)}
    write_as_fadtk(tmp_path / "gen", "openl3-stable-audio", frames)
    reference = generator.normal(size=(60, 16))
    np.savez(tmp_path / "sam.npz", mu_ref=reference.mean(0), sigma_ref=np.cov(reference, rowvar=False))
    words = ["--reference", str(tmp_path / "sam.npz"), "--generated", str(tmp_path / "gen"), "--read-fadtk"]
    words += ["--output", str(tmp_path / "out")]
    assert evaluate.fad([*words, "--embedder", "openl3-stable-audio", "--inf"]) == 2  # 6 files are too few
    assert "needs at least 8 files, got 6" in capsys.readouterr().err
    assert evaluate.fad([*words, "--embedder", "openl3-stable-audio"]) == 0
    (result,) = json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
    vectors = np.concatenate(list(frames.values())).astype(np.float16)
    assert result["scores"]["fad"] == pytest.approx(
        frechet_distance(gaussian_of(reference), gaussian_of(vectors)), rel=1e-6
    )
    assert result["scores"]["fad_low"] <= result["scores"]["fad_high"]
    assert result["setup"]["reference"]["made_by"] == "stable-audio-metrics"
    assert evaluate.fad([*words, "--embedder", "logmel"]) == 2
    assert "statistics of OpenL3 by stable-audio-metrics" in capsys.readouterr().err


def test_very_wide_vectors_have_no_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stable_audio_tools.evaluation.scoring.MOST_DIMENSIONS", 15)
    generator = np.random.default_rng(0)
    for side in ("ref", "gen"):
        write_as_fadtk(tmp_path / side, "logmel", {f"s{i}": generator.normal(size=(9, 16)) for i in range(8)})
    words = ["--reference", str(tmp_path / "ref"), "--generated", str(tmp_path / "gen"), "--read-fadtk"]
    words += ["--output", str(tmp_path / "out")]
    assert evaluate.fad(words) == 0
    (result,) = json.loads((tmp_path / "out" / "scores.json").read_text())["results"]
    assert "fad_low" not in result["scores"] and result["scores"]["fad"] > 0
    assert evaluate.fad([*words, "--inf"]) == 2
    assert "take vectors of at most 15 numbers, got 16" in capsys.readouterr().err


def test_intervals_memorisation_and_diversity_stand_in_the_scores(sets: Path, tmp_path: Path) -> None:
    flags = ("--kernel", "--inf", "--coverage", "--kad", "--diversity", "--held-out", str(sets / "near"))
    (copies,) = score(sets, tmp_path, *flags, generated=("reference",))["results"]
    scores = copies["scores"]
    for name in ("fad", "fad_inf", "kernel", "kad_files", "precision", "recall", "density", "coverage", "memorisation"):
        assert scores[f"{name}_low"] <= scores[f"{name}_high"], name
    assert scores["memorisation"] == 1 and scores["vendi"] == scores["vendi_reference"] > 1
    nearest = copies["details"]["memorisation"][0]
    assert nearest["file"] == nearest["training_file"] and nearest["distance_ratio"] < 1e-3


def test_significance_of_two_generated_sets(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = score(sets, tmp_path, "--significance", "--kernel", "--resamples", "100")
    comparisons = {row["score"]: row for row in document["comparisons"]}
    assert set(comparisons) == {"fad", "kernel_distance"} and comparisons["fad"]["pairs"] == 8
    assert comparisons["fad"]["difference"] < 0 and comparisons["fad"]["p"] < 0.01
    assert (tmp_path / "significance.csv").is_file() and "is better than" in (tmp_path / "index.html").read_text()
    assert "near is better than far in 100.0 % of resamples of 8 pairs" in capsys.readouterr().out


# ------------------------------------------------------------------ comparing


def test_results_of_one_setup_are_compared_and_others_refused(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(
        sets, tmp_path / "near", "--embedder", EMBEDDER, "mfcc:window_seconds=0.25,coefficients=4", generated=("near",)
    )
    score(sets, tmp_path / "far", "--embedder", EMBEDDER, "mfcc:window_seconds=0.25,coefficients=4", generated=("far",))
    score(sets, tmp_path / "seed", "--seed", "3", generated=("far",))
    score(sets, tmp_path / "other", "--embedder", "logmel:bands=10,window_seconds=0.25", generated=("far",))
    paths = {name: str(tmp_path / name / "scores.json") for name in ("near", "far", "seed", "other")}
    capsys.readouterr()
    assert evaluate.compare([paths["near"], paths["far"]]) == 0
    told = capsys.readouterr().out
    assert told.count("/near") == told.count("/far") == 2 * 2 and told.count("against") == 2  # path and set, two tables
    assert evaluate.compare([paths["near"], paths["seed"]]) == 2
    assert "were not measured alike: seed is 0 and 3" in capsys.readouterr().err
    assert evaluate.compare([paths["seed"], paths["other"]]) == 2
    assert "embedder.settings.bands is 8 and 10" in capsys.readouterr().err
    assert evaluate.compare([str(sets / "near" / "tone_00.wav")]) == 2
    assert evaluate.compare([str(tmp_path / "absent.json")]) == 2
    assert capsys.readouterr().err.count("error:") == 2


def test_last_digits_of_a_gpu_do_not_prevent_a_comparison(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(sets, tmp_path / "cpu", generated=("near",))
    document = json.loads((tmp_path / "cpu" / "scores.json").read_text())
    reference = document["results"][0]["setup"]["reference"]
    for factor, status in ((1 + 1e-6, 0), (1.01, 2)):
        changed = {**reference, "variance": reference["variance"] * factor}
        document["results"][0]["setup"]["reference"] = changed
        document["results"][0]["details"]["reference"]["digest"] = "other bytes"
        (tmp_path / "gpu.json").write_text(json.dumps(document))
        assert evaluate.compare([str(tmp_path / "cpu" / "scores.json"), str(tmp_path / "gpu.json")]) == status
    assert "were not measured alike: reference.variance is" in capsys.readouterr().err


def test_copies_that_fadtk_makes_are_no_part_of_a_set(tmp_path: Path) -> None:
    write_tones(tmp_path, 2)
    write_tones(tmp_path / "convert" / "16000", 2)
    assert len(find_audio(tmp_path)) == 4
    (tmp_path / "embeddings").mkdir()
    assert list(find_audio(tmp_path)) == ["tone_00.wav", "tone_01.wav"]


def test_whoever_embeds_last_writes_although_each_was_last_with_one_set(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes in turns: the other is slower with the references, and faster with the generated set."""
    from stable_audio_tools.evaluation import scoring
    from stable_audio_tools.evaluation.embedding import EmbeddingCache, embed_share
    from stable_audio_tools.evaluation.settings import ScoringSettings

    cache, embedder = tmp_path / "cache", create_embedder(EMBEDDER)
    load_set = scoring.load_set
    monkeypatch.setenv("WORLD_SIZE", "2")

    def by_the_other(name: str) -> None:
        monkeypatch.setenv("RANK", "1")
        embed_share(embedder, find_audio(sets / name), EmbeddingCache(cache, embedder))
        monkeypatch.setenv("RANK", "0")

    seen: list[str] = []

    def in_turns(source: str, *rest: Any) -> Any:
        found = load_set(source, *rest)
        if source.endswith("near") and "near" not in seen:  # after this process has embedded both of its shares
            seen.append("near")
            by_the_other("reference")
            by_the_other("near")
        return found

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(scoring, "load_set", in_turns)
    words = ([str(sets / "reference")], [str(sets / "near")], [EMBEDDER], cache, ScoringSettings())
    scored = scoring.score_sets(*words)
    assert scored is not None and len(scored.results) == 1
