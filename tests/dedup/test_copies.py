"""Planted copies are found, style twins are not, and nothing but the files decides."""

import json
import logging
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.path_lists import read_path_list
from stable_audio_tools.dedup.run import DedupOutcome, deduplicate
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.store import FeatureStore

Run = Callable[..., DedupOutcome]


def found_pairs(outcome: DedupOutcome) -> set[frozenset[str]]:
    groups = [[group.kept, *(copy.dropped for copy in group.copies)] for group in outcome.groups]
    return {frozenset((a.relpath, b.relpath)) for group in groups for a, b in combinations(group, 2)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".txt", ".jsonl", ".html")}


def test_copies_are_found_and_style_twins_are_not(run: Run, planted: Any) -> None:
    """Every kind of copy with every other, at the default thresholds."""
    found = found_pairs(run())
    right = found & planted.pairs
    precision, recall = len(right) / len(found), len(right) / len(planted.pairs)
    print(f"{len(planted.pairs)} planted pairs: precision {precision:.3f}, recall {recall:.3f}")
    assert (precision, recall) == (1.0, 1.0)


def test_at_a_low_threshold_the_second_look_is_what_keeps_style_twins(run: Run, planted: Any) -> None:
    assert found_pairs(run(similarity_threshold=0.75, second_look=False)) - planted.pairs
    assert found_pairs(run(similarity_threshold=0.75)) == planted.pairs


@pytest.mark.parametrize("change", [{"similarity_chunk_size": 5}, {"num_workers": 1}, {"similarity_device": "cuda"}])
def test_block_size_threads_and_device_change_nothing(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    if change.get("similarity_device") == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    run(output_dir=str(tmp_path / "a"))
    run(output_dir=str(tmp_path / "b"), **change)
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_the_order_of_files_changes_no_pair(run: Run, planted: Any, tmp_path: Path) -> None:
    """The same files under names that sort the other way."""
    names = sorted(path for path in planted.folder.rglob("*.*") if path.is_file())
    for number, path in enumerate(reversed(names)):
        shutil.copy(path, tmp_path / f"{number:03d}{path.suffix}")
    back = {f"{n:03d}{p.suffix}": p.relative_to(planted.folder).as_posix() for n, p in enumerate(reversed(names))}
    turned = run(dataset_dir=[str(tmp_path)])
    assert {frozenset(back[name] for name in pair) for pair in found_pairs(turned)} == planted.pairs
    straight = run()
    assert {back[group.kept.relpath] for group in turned.groups} == {group.kept.relpath for group in straight.groups}


def test_what_is_written(run: Run, planted: Any, tmp_path: Path) -> None:
    outcome = run(sweep=(0.85, 0.999))
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["duplicate_files"] == 24
    assert summary["kept_files"] + summary["excluded_files"] == summary["total_scanned_files"] == 33
    assert summary["failed_files"] == 0 == len(json.loads((out / "failed_files.json").read_text()))
    rows = lines(out / "similar_pairs.jsonl")
    assert len(rows) == 24
    assert {"keep_path", "keep_relpath", "drop_path", "drop_relpath", "similarity", "aligned"} <= rows[0].keys()
    assert [len(row["drop"]) for row in lines(out / "clusters.jsonl")] == [8, 8, 8]
    assert [row["duplicate_files"] for row in outcome.sweep] == [24, outcome.sweep[1]["duplicate_files"]]
    assert outcome.sweep[1]["duplicate_files"] < 24
    page = (out / "audit.html").read_text()
    assert page.count("<audio") == 27
    assert 'src="' in page and "song0/exact.wav" in page
    # A shifted copy says by how much: 3.37 s, to the nearest tenth that a frame lasts.
    offsets = {row["drop_relpath"]: row["offset_seconds"] for row in rows}
    assert offsets["song1/exact.wav"] == pytest.approx(-3.4)
    assert offsets["song1/trimmed.wav"] == pytest.approx(-3.37 - 2.21, abs=0.1)


def test_training_leaves_out_what_the_list_names(run: Run, planted: Any, tmp_path: Path) -> None:
    """Two folders with the same file names: of each only its own copies go."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(planted.folder / "song0/twin0.wav", tmp_path / name / "a.wav")
        shutil.copy(planted.folder / f"song0/twin{name == 'two':d}.wav", tmp_path / name / "b.wav")
    folders = [{"id": name, "path": str(tmp_path / name)} for name in ("one", "two")]
    config = {"dataset_type": "audio_dir", "datasets": folders, "exclude_paths_file": str(tmp_path / "absent.txt")}
    (tmp_path / "data.json").write_text(json.dumps(config))
    run(dataset_dir=(), dataset_config=str(tmp_path / "data.json"), exclude_output=str(tmp_path / "list.txt"))
    assert read_path_list(tmp_path / "list.txt") == ["one:b.wav", "two:a.wav"]
    config["exclude_paths_file"] = str(tmp_path / "list.txt")
    loader = create_dataloader_from_config(config, batch_size=1, sample_size=4096, sample_rate=22_050)
    kept = {Path(path).relative_to(tmp_path).as_posix() for path in loader.dataset.filenames}
    assert kept == {"one/a.wav", "two/b.wav"}
    with pytest.raises(ConfigError, match=r"excluding a copy would also exclude .*, which is kept; use 'qualified'"):
        run(
            dataset_dir=(),
            dataset_config=str(tmp_path / "data.json"),
            exclude_path_format="relative",
            output_dir=str(tmp_path / "relative"),
        )
    assert not (tmp_path / "relative" / "exclude_paths.txt").exists()


def test_keep_rules(run: Run, tmp_path: Path, planted: Any) -> None:
    def kept(*rules: str) -> set[str]:
        return {group.kept.relpath for group in run(keep=rules).groups}

    assert kept("longest") == {f"song{n}/shifted.wav" for n in range(3)}
    assert kept("first") == {f"song{n}/exact.wav" for n in range(3)}
    assert kept("best-rate", "first") == {f"song{n}/exact.wav" for n in range(3)}
    sidecar = planted.folder / "song0" / "mp3_small.json"
    sidecar.write_text('{"prompt": "slow drums"}')
    try:
        assert kept("has-caption", "first") == {"song0/mp3_small.mp3", "song1/exact.wav", "song2/exact.wav"}
    finally:
        sidecar.unlink()


def test_leaks_between_two_data_sets_are_left_out_with_their_copies(run: Run, planted: Any, tmp_path: Path) -> None:
    """The other folder has the same name, and another recording under the name of one of the first."""
    other = tmp_path / "songs"
    (other / "song1").mkdir(parents=True)
    shutil.copy(planted.folder / "song2" / "mp3_small.mp3", other / "test.mp3")
    shutil.copy(planted.folder / "song1" / "twin0.wav", other / "song1" / "exact.wav")
    outcome = run(against=str(other))
    leaks = lines(tmp_path / "out" / "leaks.jsonl")
    leaking = {Path(row["path"]).relative_to(planted.folder).as_posix() for row in leaks}
    assert leaking == {"song1/twin0.wav"} | {
        name for pair in planted.pairs for name in pair if name.startswith("song2")
    }
    listed = read_path_list(tmp_path / "out" / "exclude_paths.txt")
    assert {f"songs:{name}" for name in leaking} <= set(listed)
    assert outcome.summary["leaking_files"] == 10


def test_a_killed_run_goes_on_where_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add, analysed = FeatureStore.add, []

    def count(self: FeatureStore, track: Any, sound: Any) -> None:
        if len(analysed) == 5:
            raise KeyboardInterrupt
        analysed.append(track.path)
        add(self, track, sound)

    monkeypatch.setattr(FeatureStore, "add", count)
    with pytest.raises(KeyboardInterrupt):
        run(features_dir=str(tmp_path / "own"), limit=8)
    first, analysed[:] = list(analysed), []
    monkeypatch.setattr(FeatureStore, "add", lambda *given: (analysed.append(given[1].path), add(*given))[1])
    caplog.set_level(logging.INFO, "stable_audio_tools")
    run(features_dir=str(tmp_path / "own"), limit=8)
    assert len(first) == 5 and len(analysed) == 3 and not set(first) & set(analysed)
    assert "5 of 8 files were analysed before" in caplog.text
    # A file that changed is analysed again, and so is one whose entry was damaged.
    analysed.clear()
    next((tmp_path / "own").rglob("*.npz")).write_bytes(b"PK damaged")
    run(features_dir=str(tmp_path / "own"), limit=8)
    assert len(analysed) == 1


def test_files_that_cannot_be_analysed_are_reported_and_excluded_on_request(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "songs"
    folder.mkdir()
    good = 0.1 * np.random.default_rng(0).standard_normal((2, 40_000)).astype(np.float32)
    audio_io.write(folder / "good.wav", good, 22_050)
    audio_io.write(folder / "silent.wav", np.zeros((1, 40_000), np.float32), 22_050)
    (folder / "broken.mp3").write_bytes(b"not audio")
    sf.write(folder / "nan.wav", np.full((40_000, 1), np.nan, np.float32), 22_050, subtype="FLOAT")
    outcome = run(dataset_dir=[str(folder)], exclude_failed=True)
    told = {Path(failure.path).name: failure.error for failure in outcome.failures}
    assert told.keys() == {"silent.wav", "broken.mp3", "nan.wav"}
    assert "silent" in told["silent.wav"] and "NaN" in told["nan.wav"]
    assert len(read_path_list(tmp_path / "out" / "exclude_paths.txt")) == 3
    assert outcome.summary["kept_files"] == 1
    run(dataset_dir=[str(folder)])
    assert read_path_list(tmp_path / "out" / "exclude_paths.txt") == []


def test_folders_without_readable_audio_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no audio file in .*empty with extension \.aif"):
        run(dataset_dir=[str(tmp_path / "empty")])
    (tmp_path / "empty" / "a.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"none of 1 files can be read; first: .*a.wav"):
        run(dataset_dir=[str(tmp_path / "empty")])


def test_two_folders_of_one_name_are_refused(run: Run, tmp_path: Path) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent / "audio").mkdir(parents=True)
    with pytest.raises(ConfigError, match="two folders are named 'audio'"):
        run(dataset_dir=[str(tmp_path / "x/audio"), str(tmp_path / "y/audio")])


def test_one_source_of_files() -> None:
    with pytest.raises(ConfigError, match="exactly one of --dataset-config and --dataset-dir"):
        deduplicate(DedupSettings())
