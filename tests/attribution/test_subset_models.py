"""The linear datamodeling score by its commands: subsets, train.py on each, outputs, the verdict."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import small_models
from support.small_attribution import ORIGIN, write_features

from stable_audio_tools.attribution import subset_models
from stable_audio_tools.attribution.validation import read_outputs, read_plan, write_outputs
from stable_audio_tools.cli import attribute
from stable_audio_tools.cli.main import main as toolkit
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data.example_clips import write_example_clips


def validate(words: Sequence[str]) -> int:
    return toolkit(["attribute", "validate", *words])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a subset, without a fresh interpreter for each."""

    def run(log: Path, *words: str) -> None:
        log.write_text(" ".join(words))
        assert toolkit(words) == 0

    monkeypatch.setattr(subset_models, "_run", run)


def test_from_subsets_to_outputs(tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of four subset models, each trained for a step by train.py on its own files, and measured."""
    write_example_clips(tmp_path / "clips", per_class=1)
    clips = sorted((tmp_path / "clips").rglob("*.flac"))
    save({"dataset_type": "audio_dir", "datasets": [{"id": "c", "path": str(tmp_path / "clips")}]}, tmp_path / "d.json")
    config = small_models.narrowed(load(next(small_models.CONFIGS.rglob("tiny_diffusion_cond.json"))))
    save(config, tmp_path / "model.json")
    (tmp_path / "ids.txt").write_text("".join(f"{path}\n" for path in clips))
    folder = ["--folder", str(tmp_path / "plan")]
    plan = ["make-subsets", *folder, "--ids", str(tmp_path / "ids.txt"), "--num-subsets", "4", "--fraction", "0.6"]
    assert validate(plan) == 0
    flags = ["--model-config", str(tmp_path / "model.json"), "--dataset-config", str(tmp_path / "d.json")]
    flags += ["--max-steps", "1", "--batch-size", "1", "--num-workers", "0", "--logger", "none", "--accelerator", "cpu"]
    assert validate(["train", *folder, "--part", "1", "2", "--", *flags]) == 0
    made = sorted(path.name for path in (tmp_path / "plan" / "models").glob("*.safetensors"))
    assert made == ["subset_001.safetensors", "subset_003.safetensors"]
    assert not list((tmp_path / "plan" / "runs").glob("*")), "run folders are not kept"
    assert validate(["train", *folder, "--part", "1", "2", "--", *flags]) == 0
    assert "0 models trained" in capsys.readouterr().out
    measure = ["measure", *folder, "--model-config", str(tmp_path / "model.json"), "--K", "2", "--e-seeds", "0"]
    assert validate([*measure, "--dataset-config", str(tmp_path / "d.json"), "--device", "cpu"]) == 0
    outputs = (tmp_path / "plan" / "outputs" / "subset_003.csv").read_text().splitlines()
    assert outputs[0] == "query,output" and len(outputs) == 6 and float(outputs[1].split(",")[1]) > 0


def test_adapters_and_seeds(tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Adapters of a base model on subsets, with two training seeds each, measured on the base."""
    write_example_clips(tmp_path / "clips", per_class=1)
    clips = sorted((tmp_path / "clips").rglob("*.flac"))
    save({"dataset_type": "audio_dir", "datasets": [{"id": "c", "path": str(tmp_path / "clips")}]}, tmp_path / "d.json")
    small_models.small_model("tiny_diffusion_cond", tmp_path)
    config, base = str(tmp_path / "tiny_diffusion_cond.json"), str(tmp_path / "tiny_diffusion_cond.safetensors")
    without_average = load(config)
    without_average["training"]["use_ema"] = False
    save(without_average, config)
    (tmp_path / "ids.txt").write_text("".join(f"{path}\n" for path in clips))
    folder = ["--folder", str(tmp_path / "plan")]
    make = ["make-subsets", *folder, "--ids", str(tmp_path / "ids.txt"), "--num-subsets", "4", "--fraction", "0.6"]
    assert validate([*make, "--train-seeds", "3", "3"]) == 2
    assert "--train-seeds: expected different seeds, got 3 3" in capsys.readouterr().err
    assert validate([*make, "--train-seeds", "3", "4"]) == 0
    assert read_plan(tmp_path / "plan").seeds == (3, 4)
    assert validate(make) == 2, "a plan keeps its seeds"
    assert "holds another plan" in capsys.readouterr().err
    flags = ["--model-config", config, "--dataset-config", str(tmp_path / "d.json"), "--pretrained-ckpt-path", base]
    flags += ["--max-steps", "3", "--batch-size", "1", "--num-workers", "0", "--logger", "none", "--accelerator", "cpu"]
    train = ["train", *folder, "--part", "0", "4", "--adapters", "--", *flags]
    assert validate([*train, "--seed", "1"]) == 2
    assert "--seed: set for each subset" in capsys.readouterr().err
    assert validate(train) == 0
    trained = sorted((tmp_path / "plan" / "models").glob("*.safetensors"))
    assert [path.name for path in trained] == ["subset_000_seed_3.safetensors", "subset_002_seed_3.safetensors"]
    assert all(path.stat().st_size < Path(base).stat().st_size for path in trained)
    measure = ["measure", *folder, "--model-config", config, "--K", "2", "--e-seeds", "0", "--device", "cpu"]
    measure += ["--dataset-config", str(tmp_path / "d.json")]
    assert validate([*measure, "--pretrained-ckpt-path", base]) == 0
    values = [read_outputs(tmp_path / "plan" / "outputs" / f"{path.stem}.csv") for path in trained]
    assert len(values[0]) == len(clips) and values[0] != values[1], "each adapter acts on the base"
    assert validate([*train[: -len(flags) - 2], "--", *flags]) == 2, "whole models are not mixed with adapters"
    assert "trained is adapters there and missing now" in capsys.readouterr().err


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Twelve measured subsets of twenty items, whose outputs are sums of products of features."""
    names, queries = [f"t{n}" for n in range(20)], ["q0", "q1", "q2"]
    train = write_features(tmp_path / "train", names, 0, dim=4, **ORIGIN)
    query = write_features(tmp_path / "query", queries, 1, dim=4, **ORIGIN)
    (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    words = ["make-subsets", "--folder", str(tmp_path / "plan"), "--ids", str(tmp_path / "ids.txt")]
    assert validate([*words, "--num-subsets", "12"]) == 0
    membership = read_plan(tmp_path / "plan").membership()
    gram = train.T @ train + 0.01 * np.eye(4) * (train**2).sum() / 20
    outputs = -membership @ (query @ np.linalg.inv(gram) @ train.T).T
    for number, row in enumerate(outputs):
        write_outputs(tmp_path / "plan" / "outputs" / f"subset_{number:03d}.csv", queries, row)
    return tmp_path


def test_the_verdict(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = ["--train-feature-paths", str(plan / "train"), "--query-feature-path", str(plan / "query")]
    for method in ("random", "ridge"):
        words = [*features, "--output-score-path", str(plan / method), "--method", method, "--lambda-reg", "1e-2"]
        assert attribute.score(words) == 0
    capsys.readouterr()
    lds = ["lds", "--folder", str(plan / "plan"), "--scores", str(plan / "random"), str(plan / "ridge")]
    assert validate([*lds, *features, "--lambda-grid", "1e-2", "100"]) == 0
    told = capsys.readouterr().out
    found = json.loads((plan / "plan" / "lds.json").read_text())
    assert found[str(plan / "ridge")]["mean"] > 0.999 > found[str(plan / "random")]["mean"]
    assert found["lambda 0.01"]["mean"] > found["lambda 100"]["mean"]
    assert "lambda 0.01, chosen on half of the models and judged on the others" in told
    assert "[95 % interval over queries and subsets]" in told and "the default" in told


def test_the_counterfactual_check(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train-feature-paths", str(plan / "train"), "--query-feature-path", str(plan / "query")]
    assert attribute.score([*words, "--output-score-path", str(plan / "scores")]) == 0
    folder = ["--folder", str(plan / "removals")]
    assert validate(["make-removals", *folder, "--scores", str(plan / "scores"), "--top-k", "3"]) == 0
    assert len(list((plan / "removals").glob("*.txt"))) == 7
    write_outputs(plan / "removals" / "outputs" / "whole.csv", ["q0", "q1", "q2"], [1.0, 1.0, 1.0])
    for number in range(3):
        for kind, value in (("named", 2.0 + number), ("random", 3.5)):
            outputs = [value] * 3
            write_outputs(plan / "removals" / "outputs" / f"query_{number:03d}_{kind}.csv", ["q0", "q1", "q2"], outputs)
    capsys.readouterr()
    assert validate(["counterfactual", *folder]) == 0
    assert "had more effect for 1 of 3 queries" in capsys.readouterr().out
    write_outputs(plan / "other" / "whole.csv", ["q0", "q1", "q2"], [0.0, 0.0, 0.0])
    whole = ["counterfactual", *folder, "--whole", str(plan / "other" / "whole.csv")]
    assert validate(whole) == 0
    assert "4.00000        3.50000" in capsys.readouterr().out
    for name, f in (("removals/outputs", "mean"), ("other", "loss")):
        save({"settings": {"f": f}}, plan / name / "settings.json")
    assert validate(whole) == 2
    assert "was measured with other settings than" in capsys.readouterr().err
    assert validate(["counterfactual", *folder]) == 0
    assert "had more effect for 2 of 3 queries" in capsys.readouterr().out, (
        "what is no loss falls without the right items"
    )


def test_a_run_that_fails_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho started $*\necho error: no such file\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    log = tmp_path / "one.txt"
    with pytest.raises(UserError, match=r"train failed with status 2 \(error: no such file\); see .*one\.txt"):
        subset_models._run(log, "train", "--seed", "1")
    assert log.read_text().startswith("started -m stable_audio_tools.cli.main train --seed 1")


def test_mistakes_end_in_a_sentence(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert validate(words) == 2
        return capsys.readouterr().err

    folder = ["--folder", str(plan / "plan")]
    assert "--name: set for each subset" in told("train", *folder, "--", "--name", "x")
    assert "--part: expected I N with I from 0 to N - 1, got 2 2" in told("train", *folder, "--part", "2", "2")
    assert "--name: set for each subset" in told("train", *folder, "--", "--name=x")
    assert "holds no lists (subset_*.txt, query_*.txt)" in told("train", "--folder", str(plan / "empty"))
    assert "holds no models" in told("measure", *folder, "--model-config", "m.json")
    assert "give --scores, or --train-feature-paths" in told("lds", *folder)
    assert "cannot be read" in told("make-subsets", *folder, "--ids", str(plan / "none.txt"))
    for path in list((plan / "plan" / "outputs").iterdir())[3:]:
        path.unlink()
    features = ["--train-feature-paths", str(plan / "train"), "--query-feature-path", str(plan / "query")]
    assert "3 models are measured; the score needs at least 4" in told("lds", *folder, *features)
