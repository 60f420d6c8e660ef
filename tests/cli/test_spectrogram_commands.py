"""encode-text and convert-pipeline by their flags; --mode of generate."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support.small_t5 import write_t5

from stable_audio_tools.cli.data import encode_text
from stable_audio_tools.cli.evaluate import fad
from stable_audio_tools.cli.generate import main as generate
from stable_audio_tools.cli.mel import convert as convert_pipeline
from stable_audio_tools.core.errors import UserError


def test_encode_text_writes_what_the_conditioner_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_t5(tmp_path / "t5")
    (tmp_path / "texts.txt").write_text("slow drums\nrain\n")
    flags = ["--texts", str(tmp_path / "texts.txt"), "--t5", str(folder), "--output", str(tmp_path / "e.safetensors")]
    assert encode_text([*flags, "--device", "cpu"]) == 0
    assert "2 encodings, dim" in capsys.readouterr().out
    assert set(load_file(tmp_path / "e.safetensors")) == {"slow drums", "rain"}


def test_encode_text_takes_over_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.p").write_bytes(pickle.dumps({"/music/x.wav": np.ones((1, 5), dtype=np.float32)}))
    out = tmp_path / "e.safetensors"
    assert encode_text(["--from-pickle", str(tmp_path / "e.p"), "--names", "stem", "--output", str(out)]) == 0
    assert load_file(out)["x"].shape == (5,)
    assert encode_text(["--from-pickle", str(tmp_path / "e.p"), "--output", str(tmp_path / "e.npz")]) == 2
    assert "--output: expected a name ending in .safetensors" in capsys.readouterr().err


def test_convert_pipeline_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_pipeline(["--output-dir", str(tmp_path / "out")]) == 2
    assert "give --from-pipeline, or --model-config with --ckpt-path" in capsys.readouterr().err
    assert convert_pipeline(["--output-dir", str(tmp_path / "out"), "--from-pipeline", str(tmp_path)]) == 2
    assert "contains no model_index.json" in capsys.readouterr().err


def test_modes_of_generate() -> None:
    base = ["--output-dir", "out"]
    flags = ["--mode", "inpaint", "--audio", "a.wav", "--spans", "1-2,3-4.5"]
    edit = generate.parse([*base, *flags]).request
    assert edit.spans == ((1.0, 2.0), (3.0, 4.5))
    with pytest.raises(UserError, match="--spans: '2-1' ends before it starts"):
        generate.parse([*base, "--mode", "inpaint", "--audio", "a.wav", "--spans", "2-1"])


def test_encode_text_refuses_flags_that_would_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.p").write_bytes(pickle.dumps({"x": np.ones(5, dtype=np.float32)}))
    flags = ["--output", str(tmp_path / "e.safetensors"), "--from-pickle", str(tmp_path / "e.p")]
    assert encode_text([*flags, "--t5", "t5-small", "--pooling", "mean"]) == 2
    told = capsys.readouterr().err
    for name in ("--t5", "--pooling"):
        assert f"{name}: has no effect with --from-pickle; remove it" in told
    assert encode_text([*flags[:2], "--texts", "x.txt", "--names", "stem", "--batch-size", "0"]) == 2
    told = capsys.readouterr().err
    assert "--names: has no effect with --texts; remove it" in told
    assert "--batch-size: expected at least 1, got 0" in told
    assert not (tmp_path / "e.safetensors").exists()


def test_evaluate_fad_takes_its_older_names() -> None:
    for name in ("--generated", "--generated-paths", "--generated_paths", "--generated-path", "--generated_path"):
        settings = fad.parse(["--reference", "a", name, "b", "c", "--metric", "frechet_audio_distance"])
        assert settings.generated == ("b", "c")
    with pytest.raises(UserError, match="--metric: expected one of frechet_audio_distance, got 'kernel'"):
        fad.parse(["--reference", "a", "--generated", "b", "--metric", "kernel"])
