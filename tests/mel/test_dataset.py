import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
import torch
from PIL import Image
from torch import nn

from stable_audio_tools.cli.mel import images as main
from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.latents.identity import require_same_autoencoder
from stable_audio_tools.mel import dataset as dataset_module
from stable_audio_tools.mel.dataset import ImageSettings, make_dataset
from stable_audio_tools.mel.filterbank import MelBands
from stable_audio_tools.mel.transforms import DecibelMel, LogAmplitudeMel

RATE, HOP, FRAMES, BANDS = 8000, 64, 32, 16
SLICE = HOP * FRAMES
FLAGS = f"--sample_rate {RATE} --hop_length {HOP} --n_fft 256 --resolution {FRAMES},{BANDS} --num_workers 0".split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """2.5 slices, half a slice, and one with a silent middle; the second lies in a folder below, with a prompt."""
    audio = tmp_path / "audio"
    (audio / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sf.write(audio / "long.wav", rng.normal(0, 0.1, SLICE * 5 // 2), RATE, subtype="FLOAT")
    sf.write(audio / "below" / "short.flac", rng.normal(0, 0.1, SLICE // 2), RATE)
    (audio / "below" / "short.txt").write_text("a hiss")
    holed = rng.normal(0, 0.1, SLICE * 3)
    holed[SLICE : 2 * SLICE] = 0
    sf.write(audio / "holed.wav", holed, RATE, subtype="FLOAT")
    (audio / "broken.wav").write_bytes(b"RIFF nothing")
    return audio


def cut_with(folder: Path, out: Path, *flags: str) -> int:
    """Without flags of the image method."""
    return main(["--input_dir", str(folder), "--output_dir", str(out), "--num_workers", "0", *flags])


def cut(folder: Path, out: Path, *flags: str) -> int:
    return main(["--input_dir", str(folder), "--output_dir", str(out), *FLAGS, *flags])


def db_image() -> DecibelMel:
    return DecibelMel(MelBands(RATE, 256, BANDS), 256, HOP, 256, ref="slice_max", quantize=8)


def test_latents_are_read_back_by_the_loader(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latents"
    assert cut(folder, out) == 0
    assert "6 slices written, 0 kept, 2 skipped" in capsys.readouterr().out
    left_out = (out / "left_out_0.txt").read_text()
    assert "holed.wav#1\t# silent: slice 1 is below -60 dB" in left_out
    assert "broken.wav\t# unreadable" in left_out
    loader = create_dataloader_from_config(
        {"dataset_type": "pre_encoded", "datasets": [{"id": "mel", "path": str(out)}]},
        batch_size=6,
        sample_size=FRAMES,
        sample_rate=RATE,
        num_workers=0,
        shuffle=False,
    )
    bands, infos = next(iter(loader))
    assert bands.shape == (6, BANDS, FRAMES)
    assert [(Path(info["path"]).name, info["slice"]) for info in infos] == [
        ("short.flac", 0),
        ("holed.wav", 0),
        ("holed.wav", 2),
        ("long.wav", 0),
        ("long.wav", 1),
        ("long.wav", 2),
    ]
    assert infos[0]["prompt"] == "a hiss"
    assert infos[0]["relpath"] == "below/short.flac"
    assert infos[0]["padding_mask"].tolist() == [1.0] * 16 + [0.0] * 16
    # The last slice ends where the file does.
    audio = torch.from_numpy(sf.read(folder / "long.wav", dtype="float32")[0])
    for number, start in ((3, 0), (4, SLICE), (5, SLICE * 3 // 2)):
        assert torch.equal(bands[number], db_image().encode(audio[None, start : start + SLICE])[0])


def test_a_run_that_was_killed_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert cut(folder, whole) == 0
    assert cut(folder, halved, "--max_examples", "3") == 0
    assert cut(folder, halved, "--num_workers", "2") == 0
    assert "4 slices written, 2 kept, 2 skipped" in capsys.readouterr().out
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.npy"))
    assert files == sorted(path.relative_to(halved) for path in halved.rglob("*.npy"))
    assert all(np.array_equal(np.load(whole / name), np.load(halved / name)) for name in files)


def table_of(root: Path) -> Any:
    parts = []
    for entry in json.loads((root / "train" / "state.json").read_text())["_data_files"]:
        with pa.memory_map(str(root / "train" / entry["filename"])) as file:
            parts.append(pa.ipc.open_stream(file).read_all())
    return pa.concat_tables(parts)


def test_arrow_holds_images_as_audio_diffusion_reads_them(folder: Path, tmp_path: Path) -> None:
    """`datasets` 5.2 opens this folder with `load_from_disk`; what it looks at is checked here."""
    out = tmp_path / "arrow"
    assert cut(folder, out, "--format", "arrow") == 0
    table = table_of(out)
    told = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert told == json.loads((out / "train" / "dataset_info.json").read_text())["features"]
    assert told["image"] == {"_type": "Image"}
    assert json.loads((out / "dataset_dict.json").read_text()) == {"splits": ["train"]}
    rows = table.to_pylist()
    assert [(Path(row["audio_file"]).name, row["slice"]) for row in rows[3:]] == [("long.wav", n) for n in range(3)]
    audio = torch.from_numpy(sf.read(folder / "long.wav", dtype="float32")[0])
    wanted = (db_image().encode(audio[None, :SLICE])[0] + 1) * 127.5
    image = Image.open(io.BytesIO(rows[3]["image"]["bytes"]))
    assert image.size == (FRAMES, BANDS)
    assert np.array_equal(np.asarray(image), wanted.round().numpy().astype(np.uint8))


def test_arrow_holds_log_amplitudes_for_bigvgan(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "arrow"
    flags = ["--mel_spec_method", "bigvgan", "--bigvgan_model", "bigvgan_22khz_80band", "--resolution", "32,80"]
    assert cut_with(folder, out, *flags, "--format", "arrow", "--max_examples", "2") == 0
    table = table_of(out)
    field = table.schema.field("mel")
    assert field.metadata[b"ARROW:extension:name"] == b"datasets.features.features.Array3DExtensionType"
    assert json.loads(field.metadata[b"ARROW:extension:metadata"]) == [[1, 80, 32], "float32"]
    mel = np.array(table.column("mel")[1].as_py(), np.float32)
    transform = LogAmplitudeMel(MelBands(22050, 1024, 80, 0, 8000), 1024, 256, 1024)
    audio = audio_io.read(folder / "holed.wav", 0, 32 * 256, 22050).samples
    assert mel.shape == (1, 80, 32)
    assert np.allclose(mel, transform.log_mel(audio).clamp(-11.5129, 2.1), atol=1e-4)


def load_rows(folder: Path, column: str, **entry: Any) -> list[tuple[torch.Tensor, Any]]:
    config = {"dataset_type": "huggingface", "datasets": [{"path": str(folder)}], "spectrogram_column": column, **entry}
    loader = create_dataloader_from_config(config, 1, SLICE, RATE, 1, 0, shuffle=False)
    return [(bands[0], info[0]) for bands, info in loader]


def test_arrow_images_and_arrays_are_training_data(folder: Path, tmp_path: Path) -> None:
    assert cut(folder, tmp_path / "images", "--format", "arrow") == 0
    assert cut(folder, tmp_path / "latents") == 0
    rows = load_rows(tmp_path / "images", "image")
    latents = create_dataloader_from_config(
        {"dataset_type": "pre_encoded", "datasets": [{"path": str(tmp_path / "latents")}]},
        1, SLICE, RATE, 1, 0, shuffle=False,
    )  # fmt: skip
    expected = {(Path(info[0]["path"]).name, info[0]["slice"]): bands[0] for bands, info in latents}
    assert len(rows) == len(expected) == 6
    for bands, info in rows:
        torch.testing.assert_close(bands, expected[Path(info["audio_file"]).name, info["slice"]], atol=1e-5, rtol=0)
        assert info["padding_mask"].tolist() == [1] * FRAMES
    flags = ["--mel_spec_method", "bigvgan", "--bigvgan_model", "bigvgan_22khz_80band", "--resolution", "32,80"]
    assert cut_with(folder, tmp_path / "mels", *flags, "--format", "arrow") == 0
    rows = load_rows(tmp_path / "mels", "mel")
    bands, info = next(row for row in rows if row[1]["audio_file"].endswith("holed.wav") and row[1]["slice"] == 0)
    transform = LogAmplitudeMel(MelBands(22050, 1024, 80, 0, 8000), 1024, 256, 1024)
    audio = audio_io.read(info["audio_file"], 0, 32 * 256, 22050).samples
    assert bands.shape == (80, 32)
    torch.testing.assert_close(bands, transform.encode(audio)[0], atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match=r"no column named 'picture' .* its columns are image, audio_file, slice"):
        load_rows(tmp_path / "images", "picture")


def test_arrow_goes_on_and_works_in_parallel(folder: Path, tmp_path: Path) -> None:
    config = {"variant": "db_image", "n_fft": 256, "hop_length": HOP, "n_mels": BANDS}
    settings = ImageSettings(
        str(folder), str(tmp_path / "whole"), {"type": "mel", "config": config}, RATE, FRAMES, "arrow"
    )
    small = replace(settings, output_dir=str(tmp_path / "small"), slices_per_shard=2)
    assert make_dataset(settings).written == make_dataset(replace(small, num_workers=2)).written == 6
    (tmp_path / "small" / "train" / "data-00001-of-00004.arrow").unlink()
    again = make_dataset(small)
    assert (again.written, again.kept, again.num_left_out) == (1, 5, 2)
    assert "holed.wav#1" in (tmp_path / "small" / "left_out_0.txt").read_text()
    assert table_of(tmp_path / "small").equals(table_of(tmp_path / "whole"))


def test_two_channels_and_half_precision(folder: Path, tmp_path: Path) -> None:
    assert cut(folder, tmp_path / "stereo", "--num_channels", "2", "--half", "--max_examples", "1") == 0
    (stored,) = (np.load(path) for path in (tmp_path / "stereo").rglob("*.npy"))
    assert stored.shape == (2 * BANDS, FRAMES)
    assert stored.dtype == np.float16


def test_the_transform_of_a_model_config(folder: Path, tmp_path: Path) -> None:
    mel = {"variant": "db_image", "n_fft": 256, "hop_length": HOP, "n_mels": 8, "vocoder": {"type": "griffin_lim"}}
    for number, node in enumerate([{"type": "mel", "config": mel}, {"type": "chain", "config": {"stages": [{}]}}]):
        if node["type"] == "chain":
            node["config"]["stages"] = [{"type": "mel", "config": mel}]  # type: ignore[index]
        config = tmp_path / f"{number}.json"
        config.write_text(json.dumps({"sample_rate": RATE, "model": {"pretransform": node}}))
        out = tmp_path / f"out{number}"
        flags = ("--model-config", str(config), "--resolution", str(FRAMES), "--sample-rate", str(RATE))
        assert cut_with(folder, out, *flags, "--max-examples", "1") == 0
        (stored,) = (np.load(path) for path in out.rglob("*.npy"))
        transform = DecibelMel(MelBands(RATE, 256, 8), 256, HOP, 256)
        audio = torch.from_numpy(sf.read(folder / "below" / "short.flac", dtype="float32")[0])
        wanted = transform.encode(torch.nn.functional.pad(audio, (0, SLICE // 2))[None])[0]
        assert np.allclose(stored, wanted.numpy(), atol=1e-5)


def test_a_model_with_other_bands_is_refused(folder: Path, tmp_path: Path) -> None:
    """Training would go on with bands that its own decoder reads otherwise."""
    assert cut(folder, tmp_path / "out", "--max_examples", "1") == 0
    dataset = {"dataset_type": "pre_encoded", "datasets": [{"id": "mel", "path": str(tmp_path / "out")}]}
    same = {"variant": "db_image", "n_fft": 256, "hop_length": HOP, "n_mels": BANDS, "ref": "slice_max", "quantize": 8}
    patches = {"type": "patched", "config": {"channels": BANDS, "patch_size": 2}}
    for config, message in (
        (same, None),
        ({**same, "quantize": None}, "levels is 255, not None"),
        ({**same, "ref": "full_scale", "hop_length": 32}, "hop_length is 64, not 32, ref is slice_max, not full_scale"),
    ):
        node = {"type": "mel", "config": config}
        model = nn.Module()
        model.pretransform = build("pretransform", node, sample_rate=RATE)
        if message is None:
            require_same_autoencoder(model, dataset)
            continue
        with pytest.raises(ConfigError, match=f"written by another pretransform .*{message}.*cut the audio again"):
            require_same_autoencoder(model, dataset)
    chain = {"type": "chain", "config": {"stages": [{"type": "mel", "config": same}, patches]}}
    model.pretransform = build("pretransform", chain, sample_rate=RATE)
    with pytest.raises(ConfigError, match="'mel' alone, which is one of 2 stages"):
        require_same_autoencoder(model, dataset)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resolution", "a,b"], "--resolution: expected frames, or frames,bands"),
        (["--resolution", "0"], "--resolution: expected frames"),
        (["--hop_length", "0"], "--hop-length: expected at least 1, got 0"),
        (["--mel_spec_method", "bigvgan"], "--bigvgan-model: is needed with --mel-spec-method bigvgan"),
        (
            ["--mel_spec_method", "bigvgan", "--bigvgan_model", "bigvgan_22khz_80"],
            "did you mean 'bigvgan_22khz_80band'?",
        ),
        (["--bigvgan_model", "bigvgan_22khz_80band"], "--bigvgan-model: goes with"),
        (
            ["--mel_spec_method", "bigvgan", "--bigvgan_model", "bigvgan_22khz_80band"],
            "has 80 bands, not 16; give 32,80",
        ),
        (
            ["--mel_spec_method", "bigvgan", "--bigvgan_model", "bigvgan_22khz_80band"],
            "--hop-length: bigvgan_22khz_80band has 256, not 64; leave the flag out",
        ),
        (
            ["--mel_spec_method", "bigvgan", "--bigvgan_model", "nvidia/bigvgan_22khz_80band"],
            "--sample-rate: bigvgan_22khz_80band has 22050, not 8000; leave the flag out",
        ),
        (["--format", "arrow", "--num_channels", "2"], "an image holds one channel"),
        (["--format", "arrow", "--half"], "--half: an Arrow dataset"),
        (["--input_dir", "/nowhere"], "path /nowhere does not exist"),
    ],
)
def test_mistakes_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert cut(folder, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("format", ["latents", "arrow"])
def test_a_folder_made_in_another_way_is_not_mixed_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    out = tmp_path / "out"
    assert cut(folder, out, "--format", format, "--max_examples", "1") == 0
    assert cut(folder, out, "--format", format, "--max_examples", "1", "--hop_length", "32") == 2
    assert "choose another folder" in capsys.readouterr().err


def test_silence_alone_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "a.wav", np.zeros(SLICE), RATE)
    assert cut(tmp_path / "audio", tmp_path / "out") == 2
    assert "not one slice could be used" in capsys.readouterr().err


def test_uploads_go_to_a_dataset_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, name: str, **about: Any) -> None:
            asked.append((name, about))

        def upload_folder(self, **about: Any) -> None:
            asked.append(("upload", about))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert dataset_module.upload_dataset(tmp_path, "me/mels") == "https://huggingface.co/datasets/me/mels"
    assert asked == [
        ("me/mels", {"repo_type": "dataset", "exist_ok": True}),
        ("upload", {"folder_path": str(tmp_path), "repo_id": "me/mels", "repo_type": "dataset"}),
    ]
    monkeypatch.setattr(Api, "create_repo", lambda self, name, **about: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(Exception, match=r"me/mels: not uploaded \(no route\).*hf auth login"):
        dataset_module.upload_dataset(tmp_path, "me/mels")


def test_flags_that_contradict_the_model_config_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mel = {"variant": "db_image", "n_fft": 256, "hop_length": HOP, "n_mels": 8}
    config = tmp_path / "model.json"
    config.write_text(json.dumps({"sample_rate": RATE, "model": {"pretransform": {"type": "mel", "config": mel}}}))
    for flags, message in (
        (["--resolution", "32,16"], "has 8 bands, not 16; give 32"),
        (["--num-channels", "2"], "--num-channels: .* has 1, not 2; leave the flag out"),
        (["--sample-rate", "22050"], "--sample-rate: .* has 8000, not 22050"),
        (["--mel-spec-method", "bigvgan"], "--mel-spec-method: .* has image, not bigvgan"),
        (["--hop-length", "32"], "--hop-length: .* has 64, not 32"),
        (["--n-fft", "512"], "--n-fft: .* has 256, not 512"),
        (["--bigvgan-model", "bigvgan_22khz_80band"], "--bigvgan-model: .* has the vocoder griffin_lim"),
    ):
        assert cut_with(folder, tmp_path / "out", "--model-config", str(config), *flags) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_vocoder_is_known_by_its_name_on_the_hub_too(folder: Path, tmp_path: Path) -> None:
    flags = ["--mel-spec-method", "bigvgan", "--resolution", "32,80", "--max-examples", "1"]
    assert cut_with(folder, tmp_path / "out", *flags, "--bigvgan-model", "nvidia/bigvgan_22khz_80band") == 0
    # Goes on: the same vocoder.
    assert cut_with(folder, tmp_path / "out", *flags, "--bigvgan-model", "bigvgan_22khz_80band") == 0


@pytest.mark.parametrize("below", ["", "mels"])
def test_a_file_is_no_folder_to_write_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "out").write_text("")
    assert cut(folder, tmp_path / "out" / below) == 2
    assert "out is a file; choose a folder" in capsys.readouterr().err


def test_an_arrow_folder_is_not_extended(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cut(folder, tmp_path / "out", "--format", "arrow", "--max-examples", "1") == 0
    assert cut(folder, tmp_path / "out", "--format", "arrow", "--max-examples", "2") == 2
    told = capsys.readouterr().err
    assert "was begun with 1 slices, and now there are 2; a folder of --format arrow is not extended" in told
