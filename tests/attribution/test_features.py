"""Files of features: what is never written over, what a kill or damage leaves, shards, and what may be compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.attribution.features import (
    FeaturePaths,
    Features,
    FeatureWriter,
    merge_shards,
    read_features,
    require_comparable,
)
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import ConfigError

ABOUT: dict[str, Any] = {"items": 4, "proj_dim": 2, "seed": 1, "data": "d", "weights": "w"}
ROWS = torch.arange(8.0).reshape(4, 2) + 1


@pytest.fixture
def paths(tmp_path: Path) -> FeaturePaths:
    return FeaturePaths.of(tmp_path / "features")


def writer(paths: FeaturePaths, overwrite: bool = False, rows: int = 4, **about: Any) -> FeatureWriter:
    return FeatureWriter(paths, rows, 2, {**ABOUT, **about}, overwrite)


def finish(paths: FeaturePaths, rows: list[int] | None = None, **about: Any) -> None:
    """A file of these rows of four; the others were left out."""
    made, chosen = writer(paths, **about), [0, 1, 2, 3] if rows is None else rows
    if chosen:
        made.write(chosen, ROWS[chosen])
    made.finish(list("abcd"), left_out=4 - len(chosen))


def test_what_was_left_out_stays_known(paths: FeaturePaths) -> None:
    finish(paths, [0, 1, 3])
    finished = writer(paths).finished
    assert finished is not None and (finished["valid_rows"], finished["left_out"]) == (3, 1)
    assert read_features(paths.feature).ids == ("a", "b", "d")


def test_more_items_are_told(paths: FeaturePaths) -> None:
    finish(paths)
    with pytest.raises(
        ConfigError, match=r"other settings \(items, data; items is 4 in the file and 6 now\).*--overwrite"
    ):
        writer(paths, rows=6, items=6, data="e")


def test_files_without_the_newer_keys_are_read_but_not_taken_for_complete(paths: FeaturePaths) -> None:
    finish(paths)
    about = load(paths.meta)
    del about["items"], about["left_out"]
    save(about, paths.meta)
    assert len(read_features(paths.feature)) == 4
    with pytest.raises(ConfigError, match="items is not recorded in the file and 4 now"):
        writer(paths)


@pytest.mark.parametrize("damage", ["rows", "ids", "no ids"])
def test_damaged_results_are_not_complete(damage: str, paths: FeaturePaths) -> None:
    finish(paths)
    if damage == "rows":
        paths.feature.write_bytes(paths.feature.read_bytes()[:-4])
    elif damage == "ids":
        paths.ids.write_text("a\nb\n")
    else:
        paths.ids.unlink()
    with pytest.raises(ConfigError, match="pass --overwrite to compute it again"):
        writer(paths)
    assert writer(paths, overwrite=True).pending == [0, 1, 2, 3]


def test_files_of_others_stay(paths: FeaturePaths, tmp_path: Path) -> None:
    paths.feature.write_bytes(b"precious")
    with pytest.raises(
        ConfigError, match=r"features: already exists without its metadata .*features\.meta\.json.*--overwrite"
    ):
        writer(paths)
    assert paths.feature.read_bytes() == b"precious"
    paths.feature.unlink()
    finish(paths)
    elsewhere = FeaturePaths.of(paths.feature, meta=tmp_path / "other.json")
    with pytest.raises(ConfigError, match="already exists without"):
        writer(elsewhere)
    other = FeaturePaths.of(tmp_path / "new", meta=tmp_path / "precious.json")
    save({"mine": 1}, other.meta)
    with pytest.raises(ConfigError, match="was computed with other settings"):
        writer(other)
    assert load(other.meta) == {"mine": 1} and len(read_features(paths.feature)) == 4


def test_a_kill_between_the_last_steps_is_gone_on_from(paths: FeaturePaths) -> None:
    """The rows have their name already, and nothing tells yet what they are."""
    writer(paths).write([0, 1, 2, 3], ROWS)
    paths.feature.write_bytes(b"")
    made = writer(paths)
    assert made.pending == []
    made.finish(list("abcd"))
    assert np.array_equal(read_features(paths.feature).rows, ROWS.numpy())


def test_a_damaged_part_is_mended(paths: FeaturePaths, caplog: pytest.LogCaptureFixture) -> None:
    writer(paths).write([0, 1, 2, 3], ROWS)
    paths.part.write_bytes(paths.part.read_bytes()[:20])
    made = writer(paths)
    assert made.pending == [2, 3] and "all rows but the first 2 are computed again" in caplog.text
    made.write([2, 3], ROWS[2:])
    paths.part_rows.unlink()
    assert writer(paths).pending == [0, 1, 2, 3]


def test_an_attempt_without_rows_blocks_nothing(paths: FeaturePaths) -> None:
    writer(paths)
    assert writer(paths, seed=2).pending == [0, 1, 2, 3]
    finish(paths, [], seed=2)
    assert writer(paths, seed=3).pending == [0, 1, 2, 3]
    writer(paths, seed=3).write([1], ROWS[1:2])
    with pytest.raises(ConfigError, match=r"features\.part: was computed with other settings"):
        writer(paths, seed=4)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below, name = tmp_path / "file" / "x", tmp_path / "x"
    for paths in (FeaturePaths.of(below), FeaturePaths.of(name, meta=below), FeaturePaths.of(name, ids=tmp_path)):
        with pytest.raises(ConfigError, match=r"cannot be written \(.*choose another place for it"):
            writer(paths)


def test_any_name_without_a_line_break_is_one_line(paths: FeaturePaths) -> None:
    made = writer(paths)
    made.write([0, 1, 2, 3], ROWS)
    names = ["a\u2028b", "c\x0bd", "e\x85f", "g"]
    made.finish(names)
    assert read_features(paths.feature).ids == tuple(names)
    paths.ids.write_bytes(b"a\xff\n")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_features(paths.feature)


def test_settings_that_change_features_are_compared_where_both_tell_them() -> None:
    rows = np.zeros((1, 2), np.float32)
    plain = Features(rows, ("a",), {**ABOUT, "cfg_dropout_prob": 0.0, "num_train_steps": 1000}, "one")
    require_comparable(plain, Features(rows, ("b",), {**ABOUT}, "silent"))
    for key, value in {"cfg_dropout_prob": 0.5, "num_train_steps": 500}.items():
        with pytest.raises(ConfigError, match=f"one and two cannot be compared: {key}"):
            require_comparable(plain, Features(rows, ("b",), {**plain.meta, key: value}, "two"))
    for key in ("sample_size", "mask_padding", "cfg_dropout_prob"):
        foreign = [Features(rows, ("a",), {"proj_dim": 2, key: value}, str(value)) for value in (1, 2)]
        with pytest.raises(ConfigError, match=f"1 and 2 cannot be compared: {key} 1 and 2"):
            require_comparable(*foreign)


# ------------------------------------------------------------------ shards


def make_shards(paths: FeaturePaths, *rows: list[int], **about: Any) -> None:
    for index, chosen in enumerate(rows):
        shard = paths.shard(index, len(rows))
        finish(shard, chosen, shard=[index, len(rows)], **about)
        if len(chosen) < 4:
            shard.left_out.write_text(f"/bad/{index}\t# unreadable: why\n")


def test_a_merge_joins_what_was_left_out_and_takes_empty_shards(paths: FeaturePaths) -> None:
    make_shards(paths, [0, 2], [], [0, 1, 2, 3])
    assert merge_shards(paths) == 3
    merged = read_features(paths.feature)
    assert merged.ids == ("a", "c", "a", "b", "c", "d") and merged.meta["left_out"] == 6
    assert paths.left_out.read_text().splitlines() == [f"/bad/{n}\t# unreadable: why" for n in (0, 1)]
    assert merge_shards(paths) == 3, "over its own result"


def test_a_merge_needs_rows(paths: FeaturePaths) -> None:
    make_shards(paths, [], [])
    with pytest.raises(ConfigError, match=r"its 2 shards hold no rows; see .*shard-0-of-2\.left_out\.txt"):
        merge_shards(paths)


def test_a_folder_of_shards_may_move(paths: FeaturePaths, tmp_path: Path) -> None:
    """Also beside one of other rows where it was, and under a name with brackets."""
    named = FeaturePaths.of(tmp_path / "old" / "features[1]")
    make_shards(named, [0], [1])
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    for shard in (named.shard(0, 2), named.shard(1, 2)):
        shard.feature.write_bytes(b"")
    merge_shards(FeaturePaths.of(tmp_path / "new" / "features[1]"))
    assert read_features(tmp_path / "new" / "features[1]").ids == ("a", "b")


def test_a_merge_writes_over_nothing_else(paths: FeaturePaths) -> None:
    make_shards(paths, [0], [1])
    paths.feature.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="features: already exists but was not merged from these shards"):
        merge_shards(paths)
    assert paths.feature.read_bytes() == b"precious"
    meta = paths.shard(0, 2).meta
    meta.write_text(json.dumps({key: value for key, value in load(meta).items() if key != "shard"}))
    with pytest.raises(ConfigError, match="has no number of its shard"):
        merge_shards(paths)
