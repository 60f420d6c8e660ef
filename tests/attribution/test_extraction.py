"""Features of whole data sets: the same bytes however they are made, also after a kill; and what is refused."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from support import small_models

from stable_audio_tools.attribution.extraction import Extraction, ExtractSettings
from stable_audio_tools.attribution.features import FeaturePaths, read_features
from stable_audio_tools.attribution.items import AudioShape, DatasetItems, GeneratedItems, read_manifest
from stable_audio_tools.cli import attribute
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.example_clips import write_example_clips
from stable_audio_tools.models.lora import LoraConfig, attach_lora, save_lora
from stable_audio_tools.models.pretrained import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrowed conditional model and seven clips."""
    folder = tmp_path_factory.mktemp("attribution")
    write_example_clips(folder / "clips", per_class=2)
    for path in sorted((folder / "clips").rglob("*.flac"))[7:]:
        path.unlink()
    dataset = {"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(folder / "clips")}]}
    save(dataset, folder / "clips.json")
    small_models.small_model("tiny_diffusion_cond", folder)
    return folder


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> ExtractSettings:
    return ExtractSettings(
        model_config=str(folder / "tiny_diffusion_cond.json"),
        pretrained_ckpt_path=str(folder / "tiny_diffusion_cond.safetensors"),
        dataset_config=str(folder / "clips.json"),
        feature_path=str(tmp_path / "features"),
        proj_dim=64,
        K=3,
        num_workers=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def wanted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Features by the plainest run."""
    path = tmp_path_factory.mktemp("wanted") / "features"
    run(
        ExtractSettings(
            model_config=str(folder / "tiny_diffusion_cond.json"),
            pretrained_ckpt_path=str(folder / "tiny_diffusion_cond.safetensors"),
            dataset_config=str(folder / "clips.json"),
            feature_path=str(path),
            proj_dim=64,
            K=3,
            num_workers=0,
            device="cpu",
            batch_size=1,
        )
    )
    return path.read_bytes()


def run(settings: ExtractSettings) -> Any:
    return Extraction(settings).run()


def changed_config(settings: ExtractSettings, folder: Path, training: dict | None = None, **changes: Any) -> str:
    """A config of the model that differs in these keys; without any it says that latents were trained on."""
    config = load(settings.model_config)
    config["training"] |= training or {"pre_encoded": True}
    save({**config, **changes}, folder / "changed.json")
    return str(folder / "changed.json")


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"batch_size": 8, "num_workers": 2}], ids=str)
def test_batches_and_workers_change_no_byte(change: dict, settings: ExtractSettings, wanted: bytes) -> None:
    done = run(replace(settings, **change))
    assert (done.computed, done.kept, done.left_out) == (7, 0, 0)
    assert done.paths.feature.read_bytes() == wanted
    rows = np.frombuffer(wanted, np.float32).reshape(7, 64)
    assert len(np.unique(rows, axis=0)) == 7 and np.abs(rows).sum(1).min() > 0


def test_items_alone_or_in_another_order_have_the_same_rows(settings: ExtractSettings, wanted: bytes) -> None:
    extraction = Extraction(settings)
    rows = np.frombuffer(wanted, np.float32).reshape(7, 64)
    for number, (sample,) in extraction._samples([5, 0, 3], []):
        assert np.array_equal(extraction.engine.features([sample])[0].numpy(), rows[number])


def test_two_processes_make_the_bytes_of_one(
    settings: ExtractSettings, wanted: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attribute.merge(["--feature-path", settings.feature_path]) == 2
    assert "no complete shards of it exist" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run(settings)
    assert attribute.merge(["--feature-path", settings.feature_path]) == 2
    assert "found shards [1] of [2]; all shards of one run are needed" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    run(settings)
    assert attribute.merge(["--feature-path", settings.feature_path]) == 0
    assert Path(settings.feature_path).read_bytes() == wanted
    merged = read_features(settings.feature_path)
    assert len(merged.ids) == 7 and "shard" not in merged.meta
    with pytest.raises(ConfigError, match="--ids-path, --meta-path: 2 processes write their own files"):
        Extraction(replace(settings, ids_path="ids.txt"))
    monkeypatch.delenv("WORLD_SIZE")
    assert run(settings).kept == 7, "the merged file is that of one process, which has nothing left to do"


def test_a_process_may_find_no_item_sound(
    folder: Path, settings: ExtractSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the first of two processes are silent; made anew, its features take the place of the merged ones."""
    shutil.copytree(folder / "clips", tmp_path / "clips")
    for path in sorted((tmp_path / "clips").rglob("*.flac"))[:1]:
        sf.write(path, np.zeros((30000, 2)), 22050)
    save(
        {"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(tmp_path / "clips")}]},
        tmp_path / "clips.json",
    )
    chosen = replace(settings, dataset_config=str(tmp_path / "clips.json"), max_examples=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for seed in (0, 1):
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            done = run(replace(chosen, e_seed=seed, overwrite=seed == 1))
        assert (done.computed, done.left_out) == (0, 1)
        assert attribute.merge(["--feature-path", settings.feature_path]) == 0
        merged = read_features(settings.feature_path)
        assert (len(merged), merged.meta["e_seed"], merged.meta["left_out"]) == (1, seed, 1)
        assert "silent" in FeaturePaths.of(settings.feature_path).left_out.read_text()


def test_a_killed_run_goes_on_to_the_same_bytes(settings: ExtractSettings, wanted: bytes, tmp_path: Path) -> None:
    """Killed for good (SIGKILL) after its second write."""
    code = f"""
import os, signal
from stable_audio_tools.attribution.extraction import Extraction, ExtractSettings
from stable_audio_tools.attribution.features import FeatureWriter
plain, count = FeatureWriter.write, []
def write(self, *rows):
    plain(self, *rows)
    count.append(rows)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
FeatureWriter.write = write
Extraction(ExtractSettings(**{vars(replace(settings, batch_size=2))!r})).run()
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    paths = FeaturePaths.of(settings.feature_path)
    assert paths.part.exists() and not paths.feature.exists()
    done = run(settings)
    assert (done.computed, done.kept) == (3, 4)
    assert paths.feature.read_bytes() == wanted
    assert not paths.part.exists() and not paths.part_rows.exists() and not paths.part_meta.exists()
    assert run(settings).kept == 7


def test_bad_files_are_named_and_left_out(
    folder: Path, settings: ExtractSettings, wanted: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(folder / "clips", clips)
    files = sorted(clips.rglob("*.flac"))
    audio, rate = sf.read(files[2], dtype="float32")
    sf.write(files[2], audio * 0, rate)
    save({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(clips)}]}, tmp_path / "clips.json")
    done = run(replace(settings, dataset_config=str(tmp_path / "clips.json")))
    assert (done.computed, done.left_out) == (6, 1)
    assert files[2].name in done.paths.left_out.read_text() and "1 items were left out" in caplog.text
    made = read_features(settings.feature_path)
    others = [n for n in range(7) if n != 2]
    assert [Path(name).name for name in made.ids] == [files[n].name for n in others]
    rows = np.frombuffer(wanted, np.float32).reshape(7, 64)[others]
    assert np.array_equal(np.asarray(made.rows), rows), "noise follows the item, not its place or the root folder"
    again = run(replace(settings, dataset_config=str(tmp_path / "clips.json")))
    assert (again.computed, again.kept, again.left_out) == (0, 6, 1)


def test_other_settings_are_not_written_over(settings: ExtractSettings) -> None:
    run(settings)
    before = Path(settings.feature_path).read_bytes()
    with pytest.raises(
        ConfigError, match=r"was computed with other settings \(e_seed; e_seed is 0 in the file and 1 now\)"
    ):
        run(replace(settings, e_seed=1))
    assert Path(settings.feature_path).read_bytes() == before
    run(replace(settings, e_seed=1, overwrite=True))
    assert Path(settings.feature_path).read_bytes() != before


@pytest.mark.parametrize("change", ["more items", "caption", "crop", "sample_size", "mask_padding"])
def test_what_was_made_from_something_else_is_not_complete(
    change: str, folder: Path, settings: ExtractSettings, tmp_path: Path
) -> None:
    shutil.copytree(folder / "clips", tmp_path / "clips")
    save(
        {"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(tmp_path / "clips")}]},
        tmp_path / "clips.json",
    )
    first = replace(settings, dataset_config=str(tmp_path / "clips.json"), max_examples=1)
    run(first)
    before, second = Path(settings.feature_path).read_bytes(), first
    if change == "more items":
        second, told = replace(first, max_examples=2), "items, data; items is 1 in the file and 2 now"
    elif change == "caption":
        sidecar = min((tmp_path / "clips").rglob("*.json"))
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "sound": "other"}))
        told = "data; data is"
    elif change == "crop":
        second, told = (
            replace(first, disable_random_crop=True),
            "random_crop; random_crop is None in the file and False now",
        )
    elif change == "sample_size":
        config = changed_config(settings, tmp_path, {"pre_encoded": False}, sample_size=4096)
        second, told = replace(first, model_config=config), "sample_size; sample_size is 8192 in the file and 4096 now"
    else:
        config = changed_config(settings, tmp_path, {"mask_padding": True})
        second, told = (
            replace(first, model_config=config),
            "mask_padding; mask_padding is False in the file and True now",
        )
    with pytest.raises(ConfigError, match=rf"was computed with other settings \({told}.*--overwrite"):
        run(second)
    assert Path(settings.feature_path).read_bytes() == before


@pytest.mark.parametrize("name", ["tiny_diffusion_cond_inpaint", "tiny_diffusion_uncond"])
def test_every_kind_of_diffusion_model(name: str, folder: Path, settings: ExtractSettings) -> None:
    made = small_models.small_model(name, folder)
    chosen = replace(settings, model_config=str(made.config), pretrained_ckpt_path=str(made.weights), max_examples=2)
    done = run(replace(chosen, f="mean-squared-l2-norm"))
    rows = np.asarray(read_features(done.paths.feature).rows)
    assert rows.shape == (2, 64) and np.isfinite(rows).all() and np.abs(rows).sum(1).min() > 0


def test_latents_are_not_taken_for_audio_nor_audio_for_latents(settings: ExtractSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clips/.*: has 2 channels where the model takes 16; is it encoded"):
        run(replace(settings, pre_encoded=True))
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "a.npy", np.ones((16, 32), "f4"))
    (tmp_path / "latents" / "a.json").write_text('{"sound": "drums", "seconds_total": 1}')
    folders = [{"id": "latents", "path": str(tmp_path / "latents")}]
    save({"dataset_type": "pre_encoded", "datasets": folders}, tmp_path / "latents.json")
    latents = replace(settings, dataset_config=str(tmp_path / "latents.json"))
    with pytest.raises(ConfigError, match=r"latents/a\.npy: has 16 channels where the model takes 2"):
        run(latents)
    assert run(replace(latents, pre_encoded=True)).computed == 1


def test_parameters_are_selected_by_name(settings: ExtractSettings) -> None:
    chosen = Extraction(replace(settings, param_regex=r"layers\.0\.self_attn"))
    assert 0 < chosen.about["grad_dim"] < Extraction(settings).about["grad_dim"]
    assert all("layers.0.self_attn" in name for name in chosen.parameters)
    with pytest.raises(ConfigError, match="--param-regex: 'nothing' matches none of"):
        Extraction(replace(settings, param_regex="nothing"))
    with pytest.raises(ConfigError, match="is not a regular expression"):
        Extraction(replace(settings, param_regex="("))


def test_a_projection_of_all_parameters_is_the_sum_of_its_parts(settings: ExtractSettings) -> None:
    parts = []
    for pattern in (r"layers\.", r"^(?!.*layers\.)", None):
        extraction = Extraction(replace(settings, param_regex=pattern))
        (sample,) = next(extraction._samples([1], []))[1]
        parts.append(extraction.engine.features([sample])[0])
    assert torch.allclose(parts[0] + parts[1], parts[2], rtol=1e-4, atol=1e-6)


def test_conditions_are_dropped_by_key(settings: ExtractSettings, wanted: bytes) -> None:
    rows = np.frombuffer(wanted, np.float32).reshape(7, 64)
    for share, differs in ((0.5, True), (1e-9, False)):
        extraction = Extraction(replace(settings, cfg_dropout_prob=share))
        made = [extraction.engine.features([sample])[0].numpy() for _, (sample,) in extraction._samples(range(7), [])]
        assert (not np.allclose(made, rows)) == differs


@pytest.mark.parametrize("adapter_type", ["lora", "dora-rows"])
def test_an_adapter_alone(adapter_type: str, folder: Path, settings: ExtractSettings, tmp_path: Path) -> None:
    """Its parameters and no others, by hooks as by the loop; and features tell adapters apart."""
    path, fingerprints = tmp_path / "adapter.safetensors", []
    for seed in (0, 1):
        model = load_model(settings.model_config, settings.pretrained_ckpt_path)
        adapter = attach_lora(model, LoraConfig(rank=2, adapter_type=adapter_type), seed=seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.05
        save_lora(adapter, path, model=model)
        made = [
            Extraction(replace(settings, lora=(str(path), 1.0), engine=engine, checkpointing=engine == "hooks"))
            for engine in ("hooks", "loop")
        ]
        assert all("lora_factors" in name for name in made[0].parameters)
        (sample,) = next(made[0]._samples([0], []))[1]
        hooks, loop = (extraction.engine.features([sample])[0] for extraction in made)
        assert hooks.norm() > 0 and (hooks - loop).norm() < 1e-5 * loop.norm()
        fingerprints.append(made[0].about["weights"])
    assert fingerprints[0] != fingerprints[1]


# ------------------------------------------------------------------ generated files


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Two files with the manifest of generate.py."""
    folder = tmp_path / "generated"
    (folder / "a").mkdir(parents=True)
    for number, name in enumerate(("a/drums.wav", "bass.wav")):
        rng = np.random.default_rng(number)
        sf.write(folder / name, 0.2 * rng.standard_normal((9000, 2)), 22050)
    records = [
        {"file": "a/drums.wav", "conditions": {"sound": "drums", "seconds_total": 0.3}, "seed": 1},
        {"file": "bass.wav", "conditions": {"sound": "bass", "seconds_total": 0.2}, "seed": 2},
    ]
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def test_queries_from_a_manifest(generated: Path, settings: ExtractSettings, tmp_path: Path) -> None:
    queries = replace(settings, dataset_config=None, generated=str(generated))
    done = run(queries)
    assert read_features(done.paths.feature).ids == tuple(str(generated / n) for n in ("a/drums.wav", "bass.wav"))
    extraction = Extraction(queries)
    samples = [sample for _, (sample,) in extraction._samples([0, 1], [])]
    assert [sample.key for sample in samples] == ["a/drums.wav", "bass.wav"]
    assert not torch.equal(samples[0].inputs["cross_attn_cond"], samples[1].inputs["cross_attn_cond"])
    # Generated audio is audio, also for a model that was trained on latents.
    _, (encoded,) = next(Extraction(replace(queries, model_config=changed_config(queries, tmp_path)))._samples([1], []))
    assert torch.equal(encoded.latents, samples[1].latents)
    # Kept latents stand for the audio, and go past the autoencoder.
    np.save(generated / "bass.npy", samples[1].latents.numpy() + 1)
    _, (kept,) = next(Extraction(queries)._samples([1], []))
    assert torch.allclose(kept.latents, samples[1].latents + 1) and kept.key == "bass.wav"


def test_a_query_made_anew_is_not_the_old_one(generated: Path, settings: ExtractSettings) -> None:
    """Of the same name, length and conditions."""
    queries = replace(settings, dataset_config=None, generated=str(generated))
    run(queries)
    assert run(queries).kept == 2
    sf.write(generated / "bass.wav", 0.2 * np.random.default_rng(7).standard_normal((9000, 2)), 22050)
    with pytest.raises(ConfigError, match=r"was computed with other settings \(data;"):
        run(queries)


def test_path_lists_and_flags_of_generated_files(generated: Path, settings: ExtractSettings, tmp_path: Path) -> None:
    queries = replace(settings, dataset_config=None, generated=str(generated))
    (tmp_path / "list.txt").write_text("bass.wav\n")
    assert [run(replace(queries, exclude_paths_file=str(tmp_path / "list.txt"))).computed] == [1]
    assert Path(read_features(settings.feature_path).ids[0]).name == "drums.wav"
    included = Extraction(replace(queries, include_paths_file=str(tmp_path / "list.txt")))
    assert [included.items.key(number) for number in range(len(included.items))] == ["bass.wav"]
    for flag, change in {
        "--pre-encoded": {"pre_encoded": True},
        "--no-pre-encoded": {"pre_encoded": False},
        "--disable-random-crop": {"disable_random_crop": True},
    }.items():
        with pytest.raises(ConfigError, match=f"{flag}: applies to a dataset, not to --generated"):
            replace(queries, **change)


@pytest.mark.parametrize("engine", ["vmap", "auto"])
def test_kept_latents_of_several_lengths(engine: str, generated: Path, settings: ExtractSettings) -> None:
    """And one whose latents cannot be used is left out."""
    queries = replace(settings, dataset_config=None, generated=str(generated), proj_dim=8, projection="normal")
    channels = Extraction(queries).attributed.shape.latent_channels
    rng = np.random.default_rng(0)
    for name, frames in (("a/drums.npy", 24), ("bass.npy", 32)):
        np.save(generated / name, rng.standard_normal((channels, frames)).astype("f4"))
    done = run(replace(queries, engine=engine))
    assert done.computed == 2 and np.isfinite(np.fromfile(settings.feature_path, "f4")).all()
    np.save(generated / "bass.npy", np.zeros((channels + 1, 32), "f4"))
    done = run(replace(queries, engine=engine, overwrite=True))
    assert (done.computed, done.left_out) == (1, 1) and "expected latents of shape" in done.paths.left_out.read_text()


def test_a_failed_attempt_does_not_block_the_next(generated: Path, settings: ExtractSettings) -> None:
    queries = replace(settings, dataset_config=None, generated=str(generated))
    (generated / "a").rename(generated / "b")
    (generated / "bass.wav").rename(generated / "b" / "bass.wav")
    with pytest.raises(AudioError, match="none of 2 items could be used"):
        run(queries)
    (generated / "b" / "bass.wav").rename(generated / "bass.wav")
    assert run(queries).computed == 1


@pytest.mark.parametrize("name", ["two\nlines.wav", os.fsdecode(b"latin-\xe4.wav")], ids=["line break", "not UTF-8"])
def test_names_that_no_list_can_hold(name: str, generated: Path, settings: ExtractSettings) -> None:
    (generated / "bass.wav").rename(generated / name)
    (generated / "manifest.jsonl").write_text(json.dumps({"file": name}) + "\n")
    with pytest.raises(
        ConfigError, match="a name with line breaks, or not in UTF-8, cannot be written to the list of ids"
    ):
        Extraction(replace(settings, dataset_config=None, generated=str(generated)))


def test_a_dataset_with_a_name_that_is_not_utf_8(
    folder: Path, settings: ExtractSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told before the work where it is an item, and listed where it is none."""
    caplog.set_level(logging.CRITICAL, logger="stable_audio_tools")  # pytest's processes exchange nothing but UTF-8
    clips = tmp_path / "clips"
    shutil.copytree(folder / "clips", clips)
    named = clips / os.fsdecode(b"latin-\xe4.flac")
    min(clips.rglob("*.flac")).rename(named)
    save({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(clips)}]}, tmp_path / "clips.json")
    chosen = replace(settings, dataset_config=str(tmp_path / "clips.json"))
    with pytest.raises(ConfigError, match=r"latin-.*not in UTF-8.*rename the file"):
        Extraction(chosen)
    named.write_bytes(b"no audio")
    done = run(replace(chosen, max_examples=1))
    assert done.left_out == 1 and b"latin-\xe4.flac" in done.paths.left_out.read_bytes()


def test_the_manifest_of_the_original_scripts(generated: Path) -> None:
    plain = read_manifest(generated)
    (generated / "manifest.jsonl").unlink()
    items = [{"filename": record["file"], **record["conditions"]} for record in plain]
    (generated / "prompt_manifest.json").write_text(json.dumps({"items": items}))
    assert read_manifest(generated) == plain
    item = GeneratedItems(generated, AudioShape(8192, 22050, 2)).load(1)
    assert item.audio.shape == (2, 8192) and item.info["sound"] == "bass" and item.info["seconds_total"] == 0.2


def test_what_a_manifest_names_must_be_there(generated: Path, settings: ExtractSettings) -> None:
    for name in ("a/drums.wav", "bass.wav"):
        (generated / name).unlink()
    with pytest.raises(AudioError, match=r"none of 2 items could be used; first: .*drums\.wav"):
        run(replace(settings, dataset_config=None, generated=str(generated)))
    (generated / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match='has no "file"'):
        read_manifest(generated)
    (generated / "manifest.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"holds neither manifest\.jsonl nor"):
        read_manifest(generated)


# ------------------------------------------------------------------ the command


def words(settings: ExtractSettings, *more: str) -> list[str]:
    told = ["--model-config", settings.model_config, "--pretrained-ckpt-path", settings.pretrained_ckpt_path]
    told += ["--dataset-config", str(settings.dataset_config), "--feature-path", settings.feature_path]
    return [*told, "--proj-dim", "64", "--K", "3", "--num-workers", "0", "--device", "cpu", *more]


def test_the_flags_are_those_of_the_settings(settings: ExtractSettings) -> None:
    """And the published ones have their published defaults, but where that would make features depend on the run."""
    plain = vars(attribute.extract.parser().parse_args(words(settings)))
    assert set(plain) - {"dry_run"} == set(ExtractSettings.__dataclass_fields__)
    published = {"seed": 42, "e_seed": 0, "t_strategy": "uniform", "num_train_steps": 1000, "f": "loss", "model_id": 0}
    published |= {"remove_pretransform_weight_norm": "none", "cfg_dropout_prob": 0.0, "used_dim": None}
    assert published.items() <= plain.items()
    assert "--disable-sdpa" in attribute.extract.parser().format_help()


def test_a_dry_run_writes_nothing(settings: ExtractSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert attribute.extract(words(settings, "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "items        7" in told and "s per item" in told and "engine       hooks" in told
    assert re.search(r"^memory +\d+\.\d\d GiB peak, on the CPU$", told, re.MULTILINE)
    assert not list(Path(settings.feature_path).parent.glob("features*"))


def test_a_dry_run_times_the_reading(settings: ExtractSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    extraction, load = Extraction(settings), DatasetItems.load

    def slow(items: DatasetItems, number: int) -> Any:
        time.sleep(0.5)
        return load(items, number)

    monkeypatch.setattr(DatasetItems, "load", slow)
    assert extraction.estimate().seconds_per_item > 0.5


def test_without_fused_attention_and_with_recomputation(settings: ExtractSettings, wanted: bytes) -> None:
    flags = ["--disable-sdpa", "--checkpointing", "--rows-at-once", "2"]
    assert attribute.extract(words(settings, *flags)) == 0
    made = np.fromfile(settings.feature_path, np.float32)
    plain = np.frombuffer(wanted, np.float32)
    assert np.linalg.norm(made - plain) < 1e-5 * np.linalg.norm(plain)


def test_mistakes_end_in_a_sentence(
    folder: Path, settings: ExtractSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*more: str) -> str:
        assert attribute.extract(words(settings, *more)) == 2
        return capsys.readouterr().err

    assert "--batch-size: expected at least 1, got 0" in told("--batch-size", "0")
    assert "--used-dim: is 128, more than --proj-dim 64" in told("--used-dim", "128")
    assert "--K: expected 1 to --num-train-steps (1000), got 0" in told("--K", "0")
    assert "--f: expected one of loss," in told("--f", "norm")
    assert "--cfg-dropout-prob: expected 0 to 1, got 2" in told("--cfg-dropout-prob", "2")
    assert "or --generated" in told("--generated", str(tmp_path))
    assert f"--feature-path: {tmp_path} is a folder; name a file in it" in told("--feature-path", str(tmp_path))
    assert "error:" in told("--feature-path", str(folder / "clips.json" / "features"))
    made = small_models.small_model("tiny_autoencoder", folder)
    other = replace(settings, model_config=str(made.config), pretrained_ckpt_path=str(made.weights))
    assert attribute.extract(words(other)) == 2
    assert "attribution needs a diffusion model" in capsys.readouterr().err
    save({"dataset_type": "wds", "datasets": [{"id": "x", "path": str(tmp_path)}]}, tmp_path / "wds.json")
    (tmp_path / "a.tar").write_bytes(b"")
    stream = replace(settings, dataset_config=str(tmp_path / "wds.json"))
    assert attribute.extract(words(stream)) == 2
    assert "error:" in capsys.readouterr().err


def test_crops_of_a_track_are_averaged(settings: ExtractSettings, folder: Path, tmp_path: Path) -> None:
    """Each crop has its own place and noise; the feature is their mean, whatever the batches and workers."""
    short = replace(settings, model_config=changed_config(settings, tmp_path, {"pre_encoded": False}, sample_size=4096))
    extraction = Extraction(replace(short, crops=3))
    visits = [extraction.visits.load(number) for number in range(3)]
    assert len({visit.audio.numpy().tobytes() for visit in visits}) == 3, "three crops of the first track"
    samples = [sample for _, crops in extraction._samples([0], []) for sample in crops]
    assert [sample.key.partition("#")[2] for sample in samples] == ["", "1", "2"]
    mean = extraction.engine.features(samples).mean(0)
    done = run(replace(short, crops=3))
    assert (done.computed, read_features(settings.feature_path).meta["crops"]) == (7, 3)
    rows = read_features(settings.feature_path).rows
    assert len(rows) == 7 and np.allclose(rows[0], mean, atol=1e-6)
    for name, change in {"batches": {"batch_size": 2, "num_workers": 2}, "seed": {"crop_seed": 5}}.items():
        other = replace(short, crops=3, feature_path=str(tmp_path / name), **change)
        run(other)
        same = Path(other.feature_path).read_bytes() == Path(settings.feature_path).read_bytes()
        assert same == (name == "batches")
    single = replace(short, feature_path=str(tmp_path / "single"))
    run(single)
    assert not np.allclose(read_features(single.feature_path).rows, rows)
    assert run(replace(single)).computed == 0 and "crops" not in read_features(single.feature_path).meta
    seeded = replace(single, feature_path=str(tmp_path / "seeded"), crop_seed=settings.seed)
    run(seeded)
    assert Path(seeded.feature_path).read_bytes() == Path(single.feature_path).read_bytes()


def test_a_track_is_at_fault_once(settings: ExtractSettings, folder: Path, tmp_path: Path) -> None:
    clips = shutil.copytree(folder / "clips", tmp_path / "clips")
    broken = sorted(clips.rglob("*.flac"))[2]
    broken.write_bytes(b"no audio")
    save({**load(settings.dataset_config), "datasets": [{"id": "clips", "path": str(clips)}]}, tmp_path / "clips.json")
    done = run(replace(settings, dataset_config=str(tmp_path / "clips.json"), crops=2))
    assert (done.computed, done.left_out) == (6, 1)
    assert done.paths.left_out.read_text().count(broken.name) == 1


def test_crops_are_random(settings: ExtractSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save({**load(settings.dataset_config), "random_crop": False}, tmp_path / "fixed.json")
    fixed = replace(settings, dataset_config=str(tmp_path / "fixed.json"))
    assert Extraction(fixed).dataset["random_crop"] is False
    assert Extraction(replace(fixed, crops=2)).dataset["random_crop"] is True
    assert attribute.extract([*words(settings), "--crops", "2", "--disable-random-crop"]) == 2
    assert "--crops: needs random crops of a dataset, which --disable-random-crop excludes" in capsys.readouterr().err


def test_timesteps() -> None:
    from stable_audio_tools.attribution.keyed_random import keyed_noise
    from stable_audio_tools.attribution.task import select_timesteps

    assert select_timesteps(10) == list(range(0, 1000, 100))
    assert select_timesteps(3, 1000, "cumulative") == [0, 1, 2]
    assert len(select_timesteps(7)) == 7
    for count in (300, 501, 600, 999, 1000):  # evenly spaced up to the noisiest level
        steps = select_timesteps(count)
        assert len(set(steps)) == count and 1000 - steps[-1] <= 1000 / count + 1
    with pytest.raises(ConfigError, match="--t-strategy: expected uniform or cumulative"):
        select_timesteps(3, 1000, "random")
    one = keyed_noise((2, 3), 0, [0, 5], "a")
    assert torch.equal(keyed_noise((2, 3), 0, [5], "a")[0], one[1])
    assert not torch.equal(keyed_noise((2, 3), 0, [5], "b")[0], one[1])
    assert not torch.equal(keyed_noise((2, 3), 1, [5], "a")[0], one[1])


def test_files_of_other_lengths_are_refused(settings: ExtractSettings) -> None:
    run(settings)
    paths = FeaturePaths.of(settings.feature_path)
    ids = paths.ids.read_text()
    paths.ids.write_text(ids + "one more\n")
    with pytest.raises(ConfigError, match="names 8 items for 7 rows"):
        read_features(paths.feature)
    paths.ids.write_text(ids)
    paths.feature.write_bytes(paths.feature.read_bytes()[:-4])
    with pytest.raises(ConfigError, match="does not hold 7 x 64 float32"):
        read_features(paths.feature)
    about = load(paths.meta)
    del about["proj_dim"]
    save(about, paths.meta)
    with pytest.raises(ConfigError, match="pass the metadata of the features"):
        read_features(paths.feature)
