import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import save_file
from torch import Tensor

from stable_audio_tools.cli.main import ALIASES
from stable_audio_tools.cli.mel import decode as main
from stable_audio_tools.cli.mel import images as audio_to_images
from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.mel import choice
from stable_audio_tools.mel.bigvgan import BigVGAN, BigVGANConfig, load_bigvgan

RATE, HOP = 16000, 16
CONFIG = {
    "sampling_rate": RATE,
    "num_mels": 8,
    "n_fft": 64,
    "hop_size": HOP,
    "win_size": 64,
    "upsample_rates": [4, 4],
    "upsample_kernel_sizes": [8, 8],
    "upsample_initial_channel": 16,
    "use_tanh_at_final": False,
}


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BigVGAN]:
    """A tiny vocoder with the files that published ones have."""
    folder = tmp_path_factory.mktemp("vocoder")
    torch.manual_seed(0)
    network = BigVGAN(BigVGANConfig.parse(CONFIG, "config.json")).eval()
    torch.save({"generator": network.state_dict()}, folder / "bigvgan_generator.pt")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, network


@pytest.fixture
def mels(tmp_path: Path) -> dict[str, Tensor]:
    """One spectrogram in each format, (1, 8, t), (8, t) and (1, 8, t), of different lengths."""
    torch.manual_seed(1)
    made = {name: torch.randn(8, frames) - 3 for name, frames in (("a", 200), ("b", 31), ("c", 90))}
    folder = tmp_path / "mels"
    (folder / "below").mkdir(parents=True)
    torch.save(made["a"][None], folder / "a.pt")
    np.save(folder / "b.npy", made["b"].numpy())
    save_file({"mel": made["c"][None]}, str(folder / "below" / "c.safetensors"))
    return made


def as_unit(tmp_path: Path, mels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same files with values in [-1, 1], as a mel transform makes them."""
    made = {name: torch.tanh(mel + 3) for name, mel in mels.items()}
    folder = tmp_path / "mels"
    torch.save(made["a"][None], folder / "a.pt")
    np.save(folder / "b.npy", made["b"].numpy())
    save_file({"mel": made["c"][None]}, str(folder / "below" / "c.safetensors"))
    return made


def decode(tmp_path: Path, *flags: str | Path) -> int:
    return main(["--directory", str(tmp_path / "mels"), "--device", "cpu", *map(str, flags)])


def test_a_folder_of_all_formats(tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN]) -> None:
    folder, network = vocoder
    assert decode(tmp_path, "--bigvgan_model", folder, "--bits", "32") == 0
    for name, file in (("a", "a.wav"), ("b", "b.wav"), ("c", "below/c.wav")):
        audio, rate = sf.read(tmp_path / "mels" / "audio" / file, dtype="float32")
        assert rate == RATE
        with torch.no_grad():
            wanted = network(mels[name][None])[0, 0]
        assert audio.shape == (mels[name].shape[1] * HOP,)
        assert np.allclose(audio, wanted, atol=1e-6)
    assert len((tmp_path / "mels" / "audio" / "manifest.jsonl").read_text().splitlines()) == 3


def test_what_is_there_is_kept(
    tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--bigvgan-model", vocoder[0], "--output-dir", tmp_path / "out", "--format", "flac")
    assert decode(tmp_path, *flags) == 0
    assert "3 of 3 decoded" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.flac")}
    torch.save(mels["a"][:, :50], tmp_path / "mels" / "a.pt")
    assert decode(tmp_path, *flags) == 0
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == ["a.flac"]


def test_chunks_are_the_whole(tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN]) -> None:
    for out, flags in (("whole", ()), ("chunks", ("--chunk-frames", "80"))):
        assert (
            decode(tmp_path, "--bigvgan-model", vocoder[0], "--output-dir", tmp_path / out, "--bits", "32", *flags) == 0
        )
    whole, chunks = (sf.read(tmp_path / out / "a.wav")[0] for out in ("whole", "chunks"))
    assert np.abs(whole - chunks).max() < 1e-6


@pytest.mark.parametrize("chained", [False, True])
def test_the_vocoder_of_a_model_config(
    tmp_path: Path, mels: dict[str, Tensor], capsys: pytest.CaptureFixture[str], chained: bool
) -> None:
    node: dict[str, Any] = {"type": "mel", "config": {"n_fft": 64, "hop_length": HOP, "n_mels": 8}}
    mels["b"] = as_unit(tmp_path, mels)["b"]
    wanted = build("pretransform", node, sample_rate=RATE).decode(mels["b"][None])[0, 0]
    held = {"type": "chain", "config": {"stages": [node]}} if chained else node
    config = tmp_path / "model.json"
    config.write_text(json.dumps({"sample_rate": RATE, "model": {"pretransform": held}}))
    assert decode(tmp_path, "--model-config", config, "--bits", "32") == 0
    audio = sf.read(tmp_path / "mels" / "audio" / "b.wav", dtype="float32")[0]
    assert np.allclose(audio, wanted / wanted.abs().max().clamp(min=1), atol=1e-6)
    assert decode(tmp_path, "--model-config", config, "--chunk-frames", "80") == 2
    assert "Griffin-Lim finds the phases of a spectrogram as a whole" in capsys.readouterr().err


def test_files_that_cannot_be_used_are_named_and_the_rest_is_decoded(
    tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mels"
    np.save(folder / "wide.npy", np.zeros((80, 5), np.float32))
    np.save(folder / "whole.npy", np.zeros((8, 5), np.int64))
    np.save(folder / "nan.npy", np.full((8, 5), np.nan))
    (folder / "torn.pt").write_bytes((folder / "a.pt").read_bytes()[:300])
    torch.save({"one": torch.zeros(8, 3), "two": torch.zeros(8, 3)}, folder / "two.pt")
    assert decode(tmp_path, "--bigvgan-model", vocoder[0]) == 1
    assert len(list((folder / "audio").rglob("*.wav"))) == 3
    told = capsys.readouterr().err
    for message in (
        "wide.npy: holds (80, 5); the vocoder takes 8 bands",
        "whole.npy: expected numbers of shape (bands, frames), got (8, 5) torch.int64",
        "nan.npy: holds NaN",
        "torn.pt",
        "two.pt: expected one tensor, found 2",
    ):
        assert message in told


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN], capsys: pytest.CaptureFixture[str]
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "touched",)  # type: ignore[return-value]

    (tmp_path / "mels" / "harm.pt").write_bytes(pickle.dumps(Harm()))
    assert decode(tmp_path, "--bigvgan-model", vocoder[0]) == 1
    assert "harm.pt" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bigvgan-config", "y"), "--bigvgan-config: goes with --bigvgan-model"),
        (("--bigvgan-model", "x", "--model-config", "y"), "give either --bigvgan-model, or --model-config"),
        (("--model-config", "x", "--bigvgan-config", "y"), "--bigvgan-config: goes with --bigvgan-model"),
        (("--bigvgan-model", "x", "--chunk-frames", "64"), "--chunk-frames: expected more than 64, got 64"),
        (("--bigvgan-model", "/nowhere/weights.pt"), "/nowhere/weights.pt: no such file or folder"),
        (("--model-config", "/nowhere.json"), "/nowhere.json: no such file"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, mels: dict[str, Tensor], capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert decode(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


def test_two_files_of_one_name_and_an_empty_folder(
    tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "mels" / "a.npy", mels["a"].numpy())
    assert decode(tmp_path, "--bigvgan-model", vocoder[0]) == 2
    assert "a.npy and a.pt would be one file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["--directory", str(tmp_path / "empty"), "--bigvgan-model", str(vocoder[0])]) == 2
    assert "holds no mel spectrograms (.pt, .npy, .safetensors)" in capsys.readouterr().err
    config = tmp_path / "model.json"
    config.write_text(json.dumps({"sample_rate": RATE, "model": {"pretransform": {"type": "patched"}}}))
    (tmp_path / "mels" / "a.npy").unlink()
    assert decode(tmp_path, "--model-config", config) == 2
    assert "model.pretransform is neither a mel transform" in capsys.readouterr().err


def model_config(tmp_path: Path, **changes: Any) -> Path:
    config = {"n_fft": 64, "hop_length": HOP, "n_mels": 8, **changes}
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"sample_rate": RATE, "model": {"pretransform": {"type": "mel", "config": config}}}))
    return path


def test_natural_logarithms_are_not_taken_for_values_of_a_transform(
    tmp_path: Path, mels: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode(tmp_path, "--model-config", model_config(tmp_path)) == 1
    assert "a.pt: holds values from -" in (told := capsys.readouterr().err)
    assert "natural logarithms are decoded with --bigvgan-model" in told
    np.save(tmp_path / "mels" / "b.npy", np.linspace(-1.1, 1.1, 80, dtype=np.float32).reshape(8, 10))
    assert decode(tmp_path, "--model-config", model_config(tmp_path)) == 1
    assert (tmp_path / "mels" / "audio" / "b.wav").exists(), "what a model overshoots is no other unit"


def test_values_of_a_transform_are_hardly_natural_logarithms(
    tmp_path: Path, mels: dict[str, Tensor], vocoder: tuple[Path, BigVGAN], capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode(tmp_path, "--bigvgan-model", vocoder[0]) == 0
    assert "all values lie in [-1, 1]" not in capsys.readouterr().err
    as_unit(tmp_path, mels)
    assert decode(tmp_path, "--bigvgan-model", vocoder[0]) == 0
    assert "a.pt: all values are in [-1, 1], and are taken for natural logarithms" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "0"])
def test_a_folder_of_latents_tells_how_it_is_decoded(
    tmp_path: Path, vocoder: tuple[Path, BigVGAN], capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "a.wav", np.random.default_rng(0).normal(0, 0.1, 40 * HOP), RATE)
    made = ["--input-dir", str(tmp_path / "audio"), "--output-dir", str(tmp_path / "mels"), "--resolution", "40"]
    assert audio_to_images([*made, "--model-config", str(model_config(tmp_path)), "--num-workers", "0"]) == 0
    flags = ["--directory", str(tmp_path / "mels" / below), "--device", "cpu"]
    assert main([*flags, "--bigvgan-model", str(vocoder[0])]) == 2
    assert "--bigvgan-model: takes natural logarithms, and" in capsys.readouterr().err
    assert main([*flags, "--model-config", str(model_config(tmp_path, fmax=4000))]) == 2
    assert "details.json records (fmax is 8000.0, not 4000.0)" in capsys.readouterr().err
    assert main([*flags, "--model-config", str(model_config(tmp_path))]) == 0


def test_without_a_model_the_vocoder_is_the_older_scripts(
    tmp_path: Path, mels: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def opened(source: str, config_path: str | None) -> None:
        asked.append(source)
        raise CheckpointError("not fetched here")

    monkeypatch.setattr(choice, "LogMelDecoder", opened)
    assert decode(tmp_path) == 2
    assert asked == ["bigvgan_v2_44khz_128band_256x"]
    script = Path(__file__).parents[2] / "scripts" / "convert_bigvgan_pt_to_audio.py"
    assert ALIASES[script.name] == "mel decode" and "run_script(__file__)" in script.read_text()


def test_weights_of_another_layout_are_told_with_what_to_do(tmp_path: Path, vocoder: tuple[Path, BigVGAN]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "resblock": "2"}))
    with pytest.raises(CheckpointError, match=r"does not fit its config(.|\n)*give the config.json") as raised:
        load_bigvgan(vocoder[0], tmp_path / "config.json")
    assert "partial" not in str(raised.value)
