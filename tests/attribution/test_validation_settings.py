"""Models, outputs and verdicts are of one kind: other settings are refused, and what is not a number is named."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import small_models
from support.small_attribution import ORIGIN, write_features

from stable_audio_tools.attribution import subset_models
from stable_audio_tools.attribution.extraction import Extraction, ExtractSettings
from stable_audio_tools.attribution.results import Scores, save_scores
from stable_audio_tools.attribution.subset_models import Queries
from stable_audio_tools.attribution.validation import read_outputs, read_plan, write_outputs
from stable_audio_tools.cli import attribute
from stable_audio_tools.cli.main import main as toolkit
from stable_audio_tools.core.config import load, save
from stable_audio_tools.data.example_clips import write_example_clips

ITEMS, QUERIES = [f"t{n}" for n in range(20)], ["q0", "q1", "q2"]


def validate(*words: object) -> int:
    return toolkit(["attribute", "validate", *map(str, words)])


# ------------------------------------------------------------------ training


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with four lists, and the names of those that are trained on; a model is an empty file."""
    (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in ITEMS))
    assert validate("make-subsets", "--folder", tmp_path, "--ids", tmp_path / "ids.txt", "--num-subsets", 4) == 0
    names: list[str] = []

    def run(log: Path, step: str, *words: str) -> None:
        name = Path(words[words.index("--name") + 1]).name
        made = {
            "train": tmp_path / "runs" / name / "1" / "checkpoints" / "last.ckpt",
            "unwrap-model": tmp_path / "models" / f"{name}.safetensors",
        }[step]
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
        if step == "train":
            names.append(name)

    monkeypatch.setattr(subset_models, "_run", run)
    return names


def test_only_lists_of_this_command_are_trained(trained: list[str], tmp_path: Path) -> None:
    for name in ("scores.query_ids.txt", "query_ids.txt", "subset_notes.txt"):
        (tmp_path / name).write_text("q0\n")
    save_scores(Scores(np.ones((1, 20)), ("q0",), tuple(ITEMS)), tmp_path / "scores")
    assert validate("make-removals", "--folder", tmp_path, "--scores", tmp_path / "scores") == 0
    assert validate("train", "--folder", tmp_path) == 0
    subsets = [f"subset_{number:03d}" for number in range(4)]
    assert trained == ["query_000_named", "query_000_random", *subsets, "whole"]


def test_models_of_other_flags_are_not_kept(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "data.json"
    config.write_text("{}")
    flags = ["--dataset-config", config, "--max-steps", "10"]
    train = ["train", "--folder", tmp_path, "--part", 0, 2, "--"]
    save({"settings": {"--max-stepz": "10"}}, tmp_path / "models" / "settings.json")
    assert validate(*train, *flags) == 0, "a run that failed at once binds nobody to its flags"
    assert validate(*train, "--max-steps=10", "--num-workers", "0", *flags[:2]) == 0, "the same in another order"
    assert len(trained) == 2
    capsys.readouterr()
    assert validate(*train, *flags[:2], "--max-steps", "20", "--compile") == 2
    told = capsys.readouterr().err
    assert (
        "written with other settings (--max-steps is 10 there and 20 now, --compile is missing there and given now)"
        in told
    )
    assert "choose another --folder, or delete" in told
    config.write_text('{"datasets": []}')
    assert validate(*train, *flags) == 2
    assert "--dataset-config is" in capsys.readouterr().err, "the same name, another content"
    (tmp_path / "models" / "settings.json").unlink()
    assert validate(*train, *flags) == 2
    assert "holds subset_000.safetensors, but no settings.json with its settings" in capsys.readouterr().err


# ------------------------------------------------------------------ measuring


@pytest.fixture
def measured(tmp_path: Path) -> list[object]:
    """The words that measure two clips by two models in `tmp_path`."""
    write_example_clips(tmp_path / "clips", per_class=1)
    dataset = {"dataset_type": "audio_dir", "datasets": [{"id": "c", "path": str(tmp_path / "clips")}]}
    save(dataset, tmp_path / "d.json")
    made = small_models.small_model("tiny_diffusion_cond", tmp_path)
    (tmp_path / "models").mkdir()
    for number in range(2):
        shutil.copy(made.weights, tmp_path / "models" / f"subset_{number:03d}.safetensors")
    words = ["measure", "--folder", tmp_path, "--model-config", made.config, "--dataset-config", tmp_path / "d.json"]
    return [*words, "--max-examples", 2, "--K", 2, "--e-seeds", 0, "--device", "cpu"]


def change_weights(path: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    name = next(name for name in weights if name.startswith("model.") and weights[name].is_floating_point())
    save_file({**weights, name: torch.full_like(weights[name], value)}, path)


def test_outputs_are_of_one_setting_and_of_the_weights_there_are(
    measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(*measured) == 0
    files = [tmp_path / "outputs" / f"subset_{number:03d}.csv" for number in range(2)]
    before = [read_outputs(path) for path in files]
    assert load(tmp_path / "outputs" / "settings.json")["settings"]["K"] == 2
    for change, told in {
        ("--K", 3): "K is 2 there and 3 now",
        ("--e-seeds", 1): "e_seeds is [0] there and [1] now",
        ("--f", "mean"): "f is loss there and mean now",
        ("--max-examples", 1): "queries is 2 there and 1 now",
        ("--seed", 1): "seed is 42 there and 1 now",
    }.items():
        capsys.readouterr()
        assert validate(*measured, *change) == 2
        assert told in capsys.readouterr().err
    assert [read_outputs(path) for path in files] == before
    change_weights(tmp_path / "models" / "subset_001.safetensors", 0.5)
    assert validate(*measured) == 0
    after = [read_outputs(path) for path in files]
    assert after[0] == before[0] and after[1] != before[1]
    change_weights(tmp_path / "models" / "subset_001.safetensors", float("nan"))
    assert validate(*measured) == 2
    assert "subset_001.safetensors: the output for" in capsys.readouterr().err
    assert not files[1].exists(), "what was measured of other weights does not stay"


def test_queries_are_cropped_as_extraction_crops_them(measured: list[object], tmp_path: Path) -> None:
    config, weights = tmp_path / "tiny_diffusion_cond.json", tmp_path / "tiny_diffusion_cond.safetensors"
    dataset = str(tmp_path / "d.json")
    extracted = ExtractSettings(
        str(config), str(weights), str(tmp_path / "f"), proj_dim=8, dataset_config=dataset, K=2, device="cpu"
    )

    def crop(*more: str) -> torch.Tensor:
        settings = attribute.measure.parse([*map(str, measured[1:]), *more])
        return Queries(settings, weights).items.load(0).audio

    assert torch.equal(crop(), Extraction(extracted).items.load(0).audio)
    assert not torch.equal(crop("--seed", "0"), crop())
    start = crop("--disable-random-crop")
    assert torch.equal(start, crop("--disable-random-crop", "--seed", "0")) and not torch.equal(start, crop())


# ------------------------------------------------------------------ the verdict


@pytest.fixture
def observed(tmp_path: Path) -> np.ndarray:
    """Twelve measured subsets in `tmp_path`, whose outputs are minus the sums of these scores (3, 20)."""
    (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in ITEMS))
    assert validate("make-subsets", "--folder", tmp_path, "--ids", tmp_path / "ids.txt", "--num-subsets", 12) == 0
    truth = np.random.default_rng(0).standard_normal((3, 20))
    for number, row in enumerate(-read_plan(tmp_path).membership() @ truth.T):
        write_outputs(tmp_path / "outputs" / f"subset_{number:03d}.csv", QUERIES, row)
    return truth


def write_scores(path: Path, values: np.ndarray, method: str = "ridge", queries: list[str] = QUERIES) -> Path:
    save_scores(Scores(values, tuple(queries), tuple(ITEMS), {"method": method}), path)
    return path


def test_each_query_has_a_line_and_baselines_are_subtracted(
    observed: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(1).standard_normal((3, 20))
    good = write_scores(tmp_path / "good", observed[::-1], queries=QUERIES[::-1])
    chance = write_scores(tmp_path / "chance", noise, "random")
    alike = write_scores(tmp_path / "alike", observed + 3 * noise, "similarity")
    assert validate("lds", "--folder", tmp_path, "--scores", good, chance, alike) == 0
    told = capsys.readouterr().out
    assert f"{good} less {chance}" in told and f"{good} less {alike}" in told and f"{chance} less" not in told
    found = json.loads((tmp_path / "lds.json").read_text())
    assert found[str(good)]["queries"]["q1"]["lds"] == pytest.approx(1)
    difference = found[f"{good} less {chance}"]["queries"]["q1"]["lds"]
    assert difference == pytest.approx(1 - found[str(chance)]["queries"]["q1"]["lds"])
    with (tmp_path / "lds.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["scores"] == str(chance)]
    assert sorted(row["query"] for row in rows) == QUERIES
    assert all(float(row["low"]) <= float(row["lds"]) <= float(row["high"]) for row in rows)


def test_the_sign_is_that_of_what_was_measured(
    observed: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lds = ["lds", "--folder", tmp_path, "--scores", write_scores(tmp_path / "good", observed)]

    def mean(*more: str) -> float:
        assert validate(*lds, *more) == 0
        return json.loads((tmp_path / "lds.json").read_text())[str(tmp_path / "good")]["mean"]

    assert mean() == pytest.approx(1) and mean("--f-not-loss") == pytest.approx(-1)
    save({"settings": {"f": "mean"}}, tmp_path / "outputs" / "settings.json")
    assert mean() == mean("--f-not-loss") == pytest.approx(-1)
    save({"settings": {"f": "loss"}}, tmp_path / "outputs" / "settings.json")
    assert validate(*lds, "--f-not-loss") == 2
    assert "were measured with --f loss; leave the flag out" in capsys.readouterr().err


def test_a_regulariser_is_chosen_as_scores_are_made(observed: np.ndarray, tmp_path: Path) -> None:
    """Several checkpoints, fewer numbers, an absolute regulariser."""
    for name, draw in (("one", 0), ("two", 2)):
        write_features(tmp_path / f"{name}_train", ITEMS, draw, dim=4, **ORIGIN)
        write_features(tmp_path / f"{name}_query", QUERIES, draw + 1, dim=4, **ORIGIN)
    features = ["--train-feature-paths", tmp_path / "one_train", "--query-feature-path", tmp_path / "one_query"]
    seen = set()
    for more in (
        [],
        ["--also", tmp_path / "two_train", tmp_path / "two_query"],
        ["--used-dim", 2],
        ["--lambda-scale", "absolute"],
    ):
        assert validate("lds", "--folder", tmp_path, *features, *more, "--lambda-grid", 1) == 0
        seen.add(json.loads((tmp_path / "lds.json").read_text())["lambda 1"]["mean"])
    assert len(seen) == 4


def test_mistakes_end_in_a_sentence(observed: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_scores(tmp_path / "good", observed)

    def told(*words: object) -> str:
        assert validate("lds", "--folder", tmp_path, *words) == 2
        return capsys.readouterr().err

    train, query = ["--train-feature-paths", tmp_path / "t"], ["--query-feature-path", tmp_path / "q"]
    assert "also needs --query-feature-path" in told("--scores", good, *train)
    assert "also needs --train-feature-paths" in told(*query)
    alone = told("--scores", good, "--used-dim", 2, "--lambda-grid", 1)
    assert "--lambda-grid, --used-dim: choosing a regulariser also needs --train-feature-paths" in alone
    for value in ("nan", "inf"):
        wrong = told(*train, *query, "--lambda-grid", "1", value)
        assert f"--lambda-grid: expected a finite number, got '{value}'" in wrong
    for value in ("0", "-1"):
        wrong = told(*train, *query, "--lambda-grid", "1", value)
        assert f"--lambda-grid: expected finite numbers above 0, got {value}" in wrong
    others = write_scores(tmp_path / "others", observed, queries=["q0", "q1", "q9"])
    assert "its queries differ from the first of --scores, for example in q2" in told("--scores", good, others)
    broken = observed.copy()
    broken[1, 7] = np.nan
    bad = write_scores(tmp_path / "bad", broken)
    assert f"{bad}: the scores of q1 and 0 more queries are not all finite" in told("--scores", bad)
    write_outputs(tmp_path / "outputs" / "subset_004.csv", QUERIES, [1.0, 2.0, float("nan")])
    assert "subset_004.csv: the output for q2 and 0 more queries is nan" in told("--scores", good)
