"""Runs as files: whole, found again, and each owner's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.model import Generated
from stable_audio_tools.interface.gallery import Gallery, new_token, owner_of
from stable_audio_tools.interface.inputs import read_upload

MADE = Generated(torch.linspace(-2, 2, 4000).expand(2, 1, -1), 8000, (3, 4))


def test_a_run_is_kept_whole(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    takes = gallery.add("user-a", MADE, {"settings": {"prompt": "rain"}})
    assert [take.settings["seed"] for take in takes] == [3, 4]
    assert audio_io.read(takes[0].audio).samples.abs().max() == pytest.approx(1, abs=1e-3)
    assert takes[0].audio.with_suffix(".json").is_file() and takes[0].picture.is_file()
    assert gallery.take("user-a", takes[0].name) == takes[0]
    assert [take.name for take in gallery.takes("user-a")] == [takes[1].name, takes[0].name]
    takes[0].audio.unlink()
    assert gallery.take("user-a", takes[0].name) is None and len(gallery.takes("user-a")) == 1


def test_level_can_be_kept(tmp_path: Path) -> None:
    take, _ = Gallery(tmp_path).add("user-a", MADE, {}, keeps_level=True)
    torch.testing.assert_close(audio_io.read(take.audio).samples[0], MADE.audio[0, 0].clamp(-1, 1), rtol=0, atol=4e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_audio_is_not_kept(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="the model generated NaN or infinite samples"):
        Gallery(tmp_path).add("user-a", Generated(torch.full((1, 1, 400), bad), 8000, (1,)), {})
    assert not list(tmp_path.rglob("*.wav"))


def test_owners_do_not_see_each_other(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    (take, _) = gallery.add("user-a", MADE, {})
    assert gallery.takes("user-b") == [] and gallery.take("user-b", take.name) is None
    for name in ("../user-a/x", "/etc/passwd", f"../user-a/{take.name}", ""):
        with pytest.raises(UserError, match="is not the name of a run"):
            gallery.take("user-b", name)


def test_nobody_chooses_the_folder_of_another() -> None:
    token = new_token()
    assert owner_of(None, token, "s") == f"browser-{token}"
    assert owner_of("ann", token, "s") == owner_of("ann", None, "t") != owner_of("bob", token, "s")
    for forged in ("../x", "user-ann", token.upper() + "/..", "", None):
        assert owner_of(None, forged, "s") == owner_of(None, None, "s") != owner_of(None, None, "t")
    assert all(set(owner) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for owner in (owner_of("../é", None, None),))


def test_settings_are_json_with_any_text(tmp_path: Path) -> None:
    prompt = '$(touch x) "quoted" ; rm -rf \\ é'
    take, _ = Gallery(tmp_path).add("user-a", MADE, {"settings": {"prompt": prompt}})
    assert json.loads(take.audio.with_suffix(".json").read_text())["settings"]["prompt"] == prompt


def test_small_files_that_hold_very_much_audio_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """A few hundred kilobytes of FLAC can hold gigabytes of samples."""
    dense = tmp_path / "dense.flac"
    sf.write(dense, np.zeros((655_350, 8), np.int16), 655_350)
    with pytest.raises(AudioError, match=r"^dense\.flac: is sampled at 655350 Hz; at most 192000 Hz are accepted"):
        read_upload(dense, 44_100)
    wide = tmp_path / "wide.flac"
    sf.write(wide, np.zeros((500 * 8_000, 8), np.int16), 8_000)
    with pytest.raises(AudioError, match=r"^wide\.flac: is 176 million samples at the model's rate; at most 64 "):
        read_upload(wide, 44_100)


def test_uploads_are_decoded_in_blocks_without_a_seam(tmp_path: Path) -> None:
    audio = 0.5 * torch.randn(2, 25 * 8_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    audio_io.write(tmp_path / "a.wav", audio, 8_000, bits=32)
    for rate in (8_000, 11_025):
        whole = audio_io.read(tmp_path / "a.wav", sample_rate=rate).samples
        torch.testing.assert_close(read_upload(tmp_path / "a.wav", rate).samples, whole, atol=1e-5, rtol=0)


def test_uploads_are_checked(tmp_path: Path) -> None:
    good = tmp_path / "good.flac"
    audio_io.write(good, torch.zeros(1, 8000), 8000)
    assert read_upload(good, 4000).samples.shape == (1, 4000)
    with pytest.raises(AudioError, match=r"^good\.flac: is 1\.0 s long; at most 0\.5 s"):
        read_upload(good, 8000, longest_seconds=0.5)
    for bad in (float("nan"), float("inf")):
        sf.write(tmp_path / "bad.wav", np.array([0, bad, 0]), 8000, "FLOAT")
        for rate in (8000, 4000):
            with pytest.raises(AudioError, match=r"^bad\.wav: holds NaN or infinite samples"):
                read_upload(tmp_path / "bad.wav", rate)
    for name, match in (
        ("a.m4a", "is not accepted"),
        ("a.m3u8", "is not accepted"),
        ("a", "is not accepted"),
        ("a.wav", "empty"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(AudioError, match=match):
            read_upload(tmp_path / name, 8000)
