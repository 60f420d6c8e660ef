"""Datasets of latents: complete after a kill, the same for any number of processes, and tied to their autoencoder."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.nn.functional as F

from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.latents.encoding import PreEncodeSettings, encode_dataset
from stable_audio_tools.latents.identity import LatentEncoder, identify, require_same_autoencoder
from stable_audio_tools.latents.writing import LatentStore, Layout, latent_mask, noise_seed, read_details
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.utils import remove_weight_norm_from_model

CONFIGS = Path(__file__).parents[2] / "stable_audio_tools" / "configs" / "model_configs"
SIZE = 16_384
RATE = 22_050


class Studio:
    """A folder with audio, an autoencoder and its weights."""

    def __init__(self, root: Path, name: str = "tiny_autoencoder", files: int = 7) -> None:
        self.root = root
        self.config = load(CONFIGS / "autoencoders" / f"{name}.json")
        torch.manual_seed(0)
        self.model = create_model_from_config(self.config).eval()
        self.write("model.json", self.config)
        save_weights(self.model.state_dict(), root / "model.safetensors")
        for number in range(files):
            self.sound(f"{number}.wav", number)
        self.write("dataset.json", self.dataset())

    def sound(self, name: str, seed: int, samples: int = 20_000, level: float = 0.1) -> Path:
        path = self.root / "audio" / name
        path.parent.mkdir(exist_ok=True)
        sf.write(path, level * np.random.default_rng(seed).standard_normal((samples, 2)), RATE)
        path.with_suffix(".json").write_text(json.dumps({"prompt": f"sound {seed}"}))
        return path

    def dataset(self, **options: Any) -> dict[str, Any]:
        return {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(self.root / "audio")}], **options}

    def write(self, name: str, value: Mapping[str, Any]) -> Path:
        (self.root / name).write_text(json.dumps(value))
        return self.root / name

    def settings(self, out: str = "out", **options: Any) -> PreEncodeSettings:
        files = {"model_config": str(self.root / "model.json"), "ckpt_path": str(self.root / "model.safetensors")}
        common = {"batch_size": 2, "sample_size": SIZE, "num_workers": 0, "deterministic": True, "device": "cpu"}
        places = {"dataset_config": str(self.root / "dataset.json"), "output_path": str(self.root / out)}
        return PreEncodeSettings(**{**files, **common, **places, **options})

    def latents(self, out: str = "out") -> dict[str, tuple[str, bytes]]:
        """Stem -> (file that it was made from, content)."""
        made = {}
        for path in sorted((self.root / out).glob("*/[0-9]*.npy")):
            about = json.loads(path.with_suffix(".json").read_text())
            made[path.stem] = (about["relpath"], path.read_bytes())
        return made

    def words(self, out: str, **flags: Any) -> list[str]:
        every = {
            "model_config": self.root / "model.json",
            "ckpt_path": self.root / "model.safetensors",
            "dataset_config": self.root / "dataset.json",
            "output_path": self.root / out,
            "sample_size": SIZE,
            "device": "cpu",
            "num_workers": 0,
            **flags,
        }
        words = []
        for key, value in every.items():
            words += ["--" + key.replace("_", "-"), *([] if value is True else [str(value)])]
        return words


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def run_ranks(studio: Studio, monkeypatch: pytest.MonkeyPatch, ranks: int, out: str = "out", **options: Any) -> None:
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        encode_dataset(studio.settings(out, **options))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")


def test_the_published_layout_and_what_the_reader_makes_of_it(studio: Studio) -> None:
    assert encode_dataset(studio.settings()).encoded == 7
    made = studio.latents()
    expected = [f"000{batch:06d}{item:04d}" for batch in range(4) for item in range(2)][:7]
    assert list(made) == expected and all((studio.root / "out" / "0" / f"{stem}.npy").exists() for stem in expected)
    assert sorted(name for name, _ in made.values()) == [f"{number}.wav" for number in range(7)]
    details = read_details(studio.root / "out")
    assert details is not None
    assert details["sample_size"] == SIZE and details["args"]["batch_size"] == 2
    assert details["model_config"].endswith("model.json") and details["dataset_config"]["dataset_type"] == "audio_dir"
    about = json.loads((studio.root / "out/0/0000000000000.json").read_text())
    assert about["padding_mask"] == [1] * (SIZE // 256) and about["prompt"] == "sound 0"
    assert {"path", "timestamps", "seconds_start", "seconds_total", "sample_rate", "cache_key"} <= set(about)
    reader = {"dataset_type": "pre_encoded", "datasets": [{"id": "l", "path": str(studio.root / "out")}]}
    latents, metadata = next(iter(create_dataloader_from_config(reader, 3, SIZE, RATE, num_workers=0)))
    assert latents.shape == (3, 16, SIZE // 256) and {info["prompt"][:5] for info in metadata} == {"sound"}


def test_latents_are_what_the_autoencoder_makes_of_the_crop(studio: Studio) -> None:
    encode_dataset(studio.settings())
    for path in sorted((studio.root / "out").glob("0/*.npy")):
        about = json.loads(path.with_suffix(".json").read_text())
        wave, _ = sf.read(about["path"], dtype="float32", always_2d=True)
        start = round(about["timestamps"][0] * len(wave))
        audio = torch.from_numpy(wave[start : start + SIZE].T.copy()).clamp(-1, 1)[None]
        with torch.no_grad():
            mean = studio.model.encode(audio, skip_bottleneck=True).chunk(2, 1)[0][0]
        # Batches of two against one: sums in another order.
        assert torch.allclose(torch.from_numpy(np.load(path)), mean, atol=1e-4)


def test_a_draw_is_kept_where_no_mean_is_asked_for(studio: Studio) -> None:
    encode_dataset(studio.settings("a", deterministic=False))
    encode_dataset(studio.settings("b", deterministic=False))
    encode_dataset(studio.settings("c", deterministic=False, seed=1))
    encode_dataset(studio.settings("mean"))
    first, again, other, mean = (studio.latents(out) for out in ("a", "b", "c", "mean"))
    assert first == again and first != other and first != mean


def test_a_draw_depends_on_the_item_alone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, processes and interruptions change nothing, and no two items share their noise."""
    encode_dataset(studio.settings("whole", deterministic=False, batch_size=1))
    whole = dict(studio.latents("whole").values())
    encode_dataset(studio.settings("stopped", deterministic=False, batch_size=1, limit=3))
    encode_dataset(studio.settings("stopped", deterministic=False, batch_size=1))
    assert dict(studio.latents("stopped").values()) == whole
    run_ranks(studio, monkeypatch, 2, "shared", batch_size=1, deterministic=False)
    assert dict(studio.latents("shared").values()) == whole
    noise = [noise_seed(0, place) for place in ("0", "1", "0/1", "10")]
    assert len({*noise, noise_seed(1, "0")}) == 5


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_processes_share_the_items_without_doubling_any(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    run_ranks(studio, monkeypatch, ranks, batch_size=1)
    one = dict(studio.latents().values())
    encode_dataset(studio.settings("plain", batch_size=1))
    assert one == dict(studio.latents("plain").values()) and len(studio.latents()) == 7


def test_resume_redoes_nothing_and_loses_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_dataset(studio.settings("whole", batch_size=1))
    whole = studio.latents("whole")
    assert encode_dataset(studio.settings(batch_size=1, limit=3)).encoded == 3
    # A kill between the two files of an item, or within one of them.
    (studio.root / "out/0/0000000010000.json").unlink()
    (studio.root / "out/0/.0000000030000.abcdef01.part.npy").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (studio.root / "out").glob("0/[0-9]*[02]0000.npy")}
    done = encode_dataset(studio.settings(batch_size=1))
    assert (done.encoded, done.kept) == (5, 2) and studio.latents() == whole
    assert len(before) == 2 and {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_of_another_size_goes_on_under_the_first_ones_names(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_dataset(studio.settings("whole"))
    encode_dataset(studio.settings(limit=2))
    run_ranks(studio, monkeypatch, 2, batch_size=3)
    made, whole = ({stem: name for stem, (name, _) in studio.latents(out).items()} for out in ("out", "whole"))
    assert made == whole


def test_settings_that_would_mix_are_refused(studio: Studio) -> None:
    encode_dataset(studio.settings(limit=1))
    with pytest.raises(
        ConfigError, match=r"written with sample_size = 16384, and this run has 8192; use the same value"
    ):
        encode_dataset(studio.settings(sample_size=8192))
    with pytest.raises(ConfigError, match="written with deterministic = True"):
        encode_dataset(studio.settings(deterministic=False))
    studio.sound("more.wav", 99)
    with pytest.raises(ConfigError, match="written with the files of the dataset"):
        encode_dataset(studio.settings())
    (studio.root / "out" / "details.json").unlink()
    with pytest.raises(ConfigError, match=r"holds latents without a details\.json"):
        encode_dataset(studio.settings())


def test_limits(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encode_dataset(studio.settings("a", limit=3)).encoded == 3
    assert encode_dataset(studio.settings("b", limit_batches=2, batch_size=2)).encoded == 4
    run_ranks(studio, monkeypatch, 2, "c", limit_batches=1, batch_size=2)
    assert len(studio.latents("c")) == 4


def test_bad_and_silent_items_are_left_out_and_named(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    studio.sound("silent.wav", 0, level=0)
    (studio.root / "audio" / "text.wav").write_text("no audio")
    studio.sound("short.wav", 1, samples=5_000)
    studio.write("dataset.json", studio.dataset(max_bad_fraction=0.5))
    done = encode_dataset(studio.settings())
    assert (done.encoded, done.left_out) == (8, 1)
    listed = (studio.root / "out" / "left_out_0.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in listed] == ["text.wav", "silent.wav"]
    assert "2 items were left out" in caplog.text
    masks = [json.loads(p.read_text())["padding_mask"] for p in (studio.root / "out").glob("0/*.json")]
    assert sorted(map(sum, masks))[0] == 20, "5,000 samples are 19.5 frames of 256"
    studio.write("dataset.json", studio.dataset(max_bad_fraction=0.5, allow_silence=True))
    assert encode_dataset(studio.settings("silence")).encoded == 9


def test_nothing_usable_is_one_sentence(tmp_path: Path) -> None:
    studio = Studio(tmp_path, files=0)
    for number in range(3):
        studio.sound(f"{number}.wav", 0, level=0)
    studio.write("dataset.json", studio.dataset(max_bad_fraction=1.0))
    with pytest.raises(AudioError, match="not one item could be encoded: 3 silent"):
        encode_dataset(studio.settings())


def test_latents_that_are_not_finite_are_not_written(studio: Studio) -> None:
    studio.model.encoder.layers[0].bias.data[0] = float("inf")
    save_weights(studio.model.state_dict(), studio.root / "model.safetensors")
    studio.write("dataset.json", studio.dataset(max_bad_fraction=1.0))
    with pytest.raises(AudioError, match="7 not finite"):
        encode_dataset(studio.settings())
    assert not studio.latents()


def test_half_precision(studio: Studio) -> None:
    encode_dataset(studio.settings("half", model_half=True))
    encode_dataset(studio.settings("full"))
    for path in (studio.root / "half").glob("0/*.npy"):
        half, full = np.load(path), np.load(studio.root / "full" / "0" / path.name)
        assert half.dtype == np.float16 and full.dtype == np.float32
        # float16 has 11 bits; a dozen layers lose some of them.
        assert np.abs(half - full).max() < 0.02 * np.abs(full).max()


def test_chunks_bound_the_memory_and_change_little(studio: Studio) -> None:
    encode_dataset(studio.settings("whole"))
    encode_dataset(studio.settings("chunks", chunked=True, chunk_size=32, overlap=16))
    for path in (studio.root / "chunks").glob("0/*.npy"):
        chunks, whole = np.load(path), np.load(studio.root / "whole" / "0" / path.name)
        assert chunks.shape == whole.shape and not np.array_equal(chunks, whole)
        assert np.abs(chunks[:, 4:-4] - whole[:, 4:-4]).max() < 0.05 * np.abs(whole).max()


def test_codes_of_a_discrete_autoencoder(tmp_path: Path) -> None:
    studio = Studio(tmp_path, "tiny_codec", files=3)
    encode_dataset(studio.settings(is_discrete=True))
    codes = np.load(tmp_path / "out/0/0000000000000.npy")
    assert codes.shape == (4, SIZE // 256) and codes.dtype == np.int64 and codes.min() >= 0 and codes.max() < 256
    about = json.loads((tmp_path / "out/0/0000000000000.json").read_text())
    assert len(about["padding_mask"]) == SIZE // 256
    (tmp_path / "vae").mkdir()
    with pytest.raises(ConfigError, match="no codebooks"):
        encode_dataset(Studio(tmp_path / "vae", files=1).settings(is_discrete=True))


def test_the_autoencoder_inside_a_larger_model(tmp_path: Path) -> None:
    studio = Studio(tmp_path, files=2)
    config = load(CONFIGS / "txt2audio" / "tiny_diffusion_cond.json")
    torch.manual_seed(0)
    model = create_model_from_config(config)
    studio.write("model.json", config)
    save_weights(model.state_dict(), tmp_path / "model.safetensors")
    assert encode_dataset(studio.settings()).encoded == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_tar_shards(studio: Studio, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = studio.root / "shards"
    shards.mkdir()
    files = sorted((studio.root / "audio").iterdir())
    for number, chosen in enumerate((files[:6], files[6:10], files[10:])):
        names = [file.name for file in chosen]
        subprocess.run(["tar", "-cf", shards / f"{number}.tar", "-C", studio.root / "audio", *names], check=True)
    studio.write("dataset.json", {"dataset_type": "wds", "datasets": [{"id": "a", "path": str(shards)}]})
    run_ranks(studio, monkeypatch, 2, "whole", num_workers=workers)
    whole = studio.latents("whole")
    assert sorted(Path(name).name for name, _ in whole.values()) == [f"{number}.wav" for number in range(7)]
    assert encode_dataset(studio.settings(limit=4, num_workers=workers)).encoded == 4
    done = encode_dataset(studio.settings(num_workers=workers))
    assert (done.encoded, done.kept) == (3, 4) and len(studio.latents()) == 7
    again = encode_dataset(studio.settings(num_workers=workers))
    assert (again.encoded, again.kept) == (0, 7), "finished shards are not opened again"
    assert all("audio" not in json.loads(path.read_text()) for path in (studio.root / "out").glob("0/*.json"))


def test_large_and_odd_metadata(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    module = studio.root / "module.py"
    module.write_text(
        "import torch\ndef get_custom_metadata(info, audio):\n"
        "    return {'vector': torch.arange(3), 'wave': torch.zeros(2, 100000), 'thing': object()}\n"
    )
    studio.write("dataset.json", studio.dataset(custom_metadata_module=str(module)))
    encode_dataset(studio.settings(limit=2))
    about = json.loads((studio.root / "out/0/0000000000000.json").read_text())
    assert about["vector"] == [0, 1, 2] and not {"wave", "thing"} & set(about)
    assert caplog.text.count("'wave' (Tensor) is not kept") == 1 and "'thing' (object) is not kept" in caplog.text


def test_latent_mask_is_the_nearest_sample() -> None:
    mask = torch.cat([torch.ones(700), torch.zeros(324)])
    expected = F.interpolate(mask[None, None], size=8, mode="nearest")[0, 0].int().tolist()
    assert latent_mask(mask, 8) == expected == [1, 1, 1, 1, 1, 1, 0, 0]


def test_names_are_those_of_the_first_run(tmp_path: Path) -> None:
    store = LatentStore(tmp_path / "l", {"resume": {}}, Layout(2, 3))
    assert [store.layout.of_item(number).stem for number in (0, 1, 5, 6, 7)] == [
        "0/0000000000000",
        "1/0010000000000",
        "1/0010000000002",
        "0/0000000010000",
        "1/0010000010000",
    ]
    assert LatentStore(tmp_path / "l", {"resume": {}}, Layout(8, 1)).layout == Layout(2, 3)


# ------------------------------------------------------------------ the command


def start(words: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "stable_audio_tools.cli.main", "pre-encode", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    studio = Studio(tmp_path, files=60)
    encode_dataset(studio.settings("whole", batch_size=1))
    words = studio.words("out", deterministic=True)
    kills, had = 0, 0
    while True:
        process = start(words)
        while process.poll() is None and len(complete(tmp_path / "out")) < had + 15:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, had = kills + 1, len(complete(tmp_path / "out"))
    printed, error = process.communicate()
    assert process.returncode == 0, error
    assert kills >= 2 and studio.latents() == studio.latents("whole")
    assert f"{60 - had} encoded, {had} kept, 0 skipped" in printed


def complete(out: Path) -> set[str]:
    return {path.stem for path in out.glob("0/[0-9]*.json")}


@pytest.mark.slow
def test_torchrun(studio: Studio) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = Path(__file__).parents[2]
    words = studio.words("out", deterministic=True, batch_size=2)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([*launcher, root / "scripts" / "pre_encode.py", *words], check=True, env=environment)
    assert sorted(name for name, _ in studio.latents().values()) == [f"{number}.wav" for number in range(7)]
    assert {stem[:3] for stem in studio.latents()} == {"000", "001"}


# ------------------------------------------------------------------ which autoencoder?


def test_latents_belong_to_their_autoencoder(studio: Studio) -> None:
    encode_dataset(studio.settings(limit=2))
    dataset = {"dataset_type": "pre_encoded", "datasets": [{"path": str(studio.root / "out")}]}
    same = create_model_from_config(studio.config)
    same.load_state_dict(studio.model.state_dict())
    require_same_autoencoder(same, dataset)
    require_same_autoencoder(copy.deepcopy(same).half(), dataset)
    remove_weight_norm_from_model(same)
    require_same_autoencoder(same, dataset)
    torch.manual_seed(1)
    other = create_model_from_config(studio.config)
    with pytest.raises(ConfigError, match=r"encoded by another autoencoder .* latents differ by .*model\.safetensors"):
        require_same_autoencoder(other, dataset)
    require_same_autoencoder(other, {"dataset_type": "audio_dir", "datasets": []})
    (studio.root / "out" / "details.json").write_text("{}")
    require_same_autoencoder(other, dataset)


def test_codes_belong_to_their_codebooks(tmp_path: Path) -> None:
    studio = Studio(tmp_path, "tiny_codec", files=1)
    encode_dataset(studio.settings(is_discrete=True))
    dataset = {"dataset_type": "pre_encoded", "datasets": [{"path": str(tmp_path / "out")}]}
    require_same_autoencoder(studio.model, dataset)
    for quantizer in studio.model.bottleneck.quantizer.quantizers:
        quantizer.codebook.weight.data = quantizer.codebook.weight.data.flip(0)
    with pytest.raises(ConfigError, match="of the codes differ"):
        require_same_autoencoder(studio.model, dataset)


def test_the_key_changes_with_weights_and_config(studio: Studio) -> None:
    key = identify(studio.model, studio.config["model"]).key
    assert identify(studio.model, studio.config["model"]).key == key
    assert identify(studio.model, {**studio.config["model"], "latent_dim": 17}).key != key
    studio.model.encoder.layers[0].bias.data[0] += 1e-6
    assert identify(studio.model, studio.config["model"]).key != key


def test_an_encoder_needs_an_autoencoder() -> None:
    with pytest.raises(ConfigError, match="Linear is not an autoencoder"):
        LatentEncoder(torch.nn.Linear(1, 1))
