"""Real music of a Debian package, downloaded once; skipped where the package cannot be had."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.checks import check_dataset
from stable_audio_tools.data.dataset import create_dataloader_from_config

PACKAGE = "hyperrogue-music"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stable-audio-tools" / "test_music"


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tracks of the package, shortest first."""
    if shutil.which("dpkg-deb") is None or shutil.which("apt-get") is None:
        pytest.skip("no Debian packages here")
    CACHE.mkdir(parents=True, exist_ok=True)
    if not list(CACHE.glob(f"{PACKAGE}_*.deb")):
        try:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=CACHE, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError):
            pytest.skip(f"the package {PACKAGE} cannot be downloaded")
    folder = tmp_path_factory.mktemp("music")
    subprocess.run(["dpkg-deb", "-x", str(next(CACHE.glob(f"{PACKAGE}_*.deb"))), str(folder)], check=True)
    sounds = (path for path in folder.rglob("*.ogg") if path.stat().st_size > 300_000)  # others are short effects
    tracks = sorted(sounds, key=lambda path: path.stat().st_size)
    assert len(tracks) > 5
    return tracks


def test_every_track_is_whole_and_its_ends_can_be_read(music: list[Path]) -> None:
    for path in music:
        about = audio_io.info(path)
        audio_io.check_end(path, about)
        end = audio_io.read(path, about.frames - about.sample_rate, about.sample_rate)
        assert end.samples.shape == (about.channels, about.sample_rate) and end.samples.isfinite().all()


def test_a_part_of_a_track_is_that_of_the_whole(music: list[Path]) -> None:
    about, whole = audio_io.info(music[0]), audio_io.read(music[0])
    assert whole.samples.shape == (about.channels, about.frames)
    for start in (0, about.frames // 3, about.frames - 70_000):
        part = audio_io.read(music[0], start, 65_536).samples
        torch.testing.assert_close(part, whole.samples[:, start : start + 65_536], atol=1e-4, rtol=0)


def test_one_verdict_for_check_and_training(music: list[Path], tmp_path: Path) -> None:
    for path in music[:4]:
        shutil.copy(path, tmp_path)
    cut = music[0].read_bytes()
    (tmp_path / "cut.ogg").write_bytes(cut[: len(cut) // 2])
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "music", "path": str(tmp_path)}]}
    report = check_dataset(config, workers=1)
    assert [Path(f.path).name for f in report.findings if f.kind == "unreadable"] == ["cut.ogg"]
    loader = create_dataloader_from_config(config, 2, 65_536, 44_100, num_workers=0)
    names = [Path(info["path"]).name for _, infos in loader for info in infos]
    assert sorted(names) == sorted(path.name for path in music[:4])
