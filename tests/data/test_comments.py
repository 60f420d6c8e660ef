"""Comments of audio files: what is written is read, by us and by libsndfile, and the samples stay as they are."""

from pathlib import Path

import pytest
import soundfile as sf
import torch

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.comments import read_comment

TEXT = '{"prompt": "Trommeln, 鼓, und Regen"}'


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
@pytest.mark.parametrize("repeats", [1, 600])
def test_round_trip(tmp_path: Path, suffix: str, repeats: int) -> None:
    text = (TEXT if suffix != ".mp3" else ascii(TEXT)) * repeats
    audio = 0.2 * torch.sin(torch.arange(9601) * 0.1)[None]
    plain, tagged = tmp_path / f"plain{suffix}", tmp_path / f"tagged{suffix}"
    audio_io.write(plain, audio, 48000)
    audio_io.write(tagged, audio, 48000, comment=text)
    assert read_comment(plain) is None and read_comment(tagged) == text
    assert torch.equal(audio_io.read(plain).samples, audio_io.read(tagged).samples)
    audio_io.check_end(tagged, audio_io.info(tagged))


def test_short_comments_of_wav_files_are_seen_by_others(tmp_path: Path) -> None:
    audio_io.write(tmp_path / "a.wav", torch.zeros(1, 101), 8000, comment="abc")
    with sf.SoundFile(tmp_path / "a.wav") as file:
        assert file.comment == "abc" and file.frames == 101
    sf_made = tmp_path / "b.wav"
    with sf.SoundFile(sf_made, "w", 8000, 1) as file:
        file.comment = "theirs"
        file.write([0.0] * 10)
    assert read_comment(sf_made) == "theirs"


@pytest.mark.parametrize(
    "content",
    [b"", b"RIFF", b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\xff", b"RIFF____WAVELIST\x0c\0\0\0INFOICMT\xff\xff\xff\xff"],
)
def test_damaged_files_have_no_comment_and_raise_nothing(tmp_path: Path, content: bytes) -> None:
    for suffix in (".wav", ".flac"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        assert not read_comment(path)
    assert read_comment(tmp_path / "absent.wav") is None
