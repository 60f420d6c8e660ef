"""Audio files: partial reads equal whole ones, what is broken says so, and writing is all or nothing."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.data import audio_io, decoders
from stable_audio_tools.data.audio_io import check_end, info, read, write
from stable_audio_tools.data.resampling import resample

FORMATS = [
    ("a.wav", 44_100, {}),
    ("a.wav", 44_100, {"subtype": "FLOAT"}),
    ("a.flac", 44_100, {}),
    ("a.aiff", 44_100, {}),
    ("a.ogg", 44_100, {}),
    ("a.ogg", 16_000, {}),
    ("a.mp3", 44_100, {}),
    ("a.mp3", 22_050, {}),  # low bit rates lean most on the bits of earlier frames
    ("a.mp3", 16_000, {}),
]


def tone(samples: int, channels: int, rate: int) -> np.ndarray:
    t = np.arange(samples) / rate
    wave = np.stack([0.3 * np.sin(2 * np.pi * (200 + 40 * np.sin(0.7 * t) + 30 * c) * t) for c in range(channels)], 1)
    return (wave + 0.05 * np.random.default_rng(0).standard_normal(wave.shape)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("name", "rate", "options"), FORMATS)
def test_partial_reads_equal_whole_reads(
    tmp_path: Path, name: str, rate: int, options: dict[str, str], channels: int
) -> None:
    path, rng = tmp_path / name, random.Random(name)
    sf.write(path, tone(15 * rate + 77, channels, rate), rate, **options)
    whole = read(path).samples
    assert whole.shape == (channels, info(path).frames)
    places = [rng.randrange(whole.shape[1]) for _ in range(30)] + [whole.shape[1] - 1 - 300 * k for k in range(15)]
    for start in places:
        frames = rng.choice([1, 300, 9_000])
        part = read(path, start, frames).samples
        # mpg123 sums in another order after a seek: 1e-7 is the last bit of float32
        torch.testing.assert_close(part, whole[:, start : start + frames], atol=3e-7, rtol=0)


def test_opus_parts_lie_where_they_should(tmp_path: Path) -> None:
    path = tmp_path / "a.opus"
    sf.write(path, tone(10 * 48_000, 2, 48_000), 48_000, format="OGG", subtype="OPUS")
    whole = read(path).samples
    for start in (1, 5_000, 123_456, 400_000):
        part = read(path, start, 5_000).samples
        # A decoder's memory fades rather than ends: some 16-bit steps may remain
        torch.testing.assert_close(part, whole[:, start : start + 5_000], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(44_100, 16_000), (22_050, 44_100)])
def test_a_resampled_part_equals_the_part_of_the_resampled(tmp_path: Path, old: int, new: int) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, noise(9_000), old)
    whole = resample(read(path).samples, old, new)
    for start, frames in ((0, 500), (1_234, 999), (whole.shape[1] - 40, 400)):
        part = read(path, start, frames, sample_rate=new)
        assert part.sample_rate == new
        torch.testing.assert_close(part.samples, whole[:, start : start + frames], atol=1e-6, rtol=0)


def noise(samples: int, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(1).standard_normal((samples, channels))).astype(np.float32)


def test_names_that_are_no_text_can_be_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.wav"))
    sf.write(os.fsencode(path), noise(500), 8_000, format="WAV")
    assert read(path).samples.shape == (2, 500)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_text("not audio at all, " * 20), "holds text, not audio"),
        (lambda p: p.write_bytes(bytes(range(256)) * 4), "cannot be decoded"),
        (lambda p: p.symlink_to(p), "cannot be opened"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make, sentence: str) -> None:
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(AudioError, match=f"a.wav: {sentence}"):
        info(path)
    with pytest.raises(AudioError, match=f"a.wav: {sentence}"):
        read(path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_a_truncated_file_is_noticed_without_decoding_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sf.write(path, tone(200_000, 2, 44_100), 44_100)
    check_end(path, info(path))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        check_end(path, info(path))


def overstate_length(path: Path, samples: int) -> None:
    """Add to the sample count in the last page of an Ogg file, as some encoders do, and mend the page's checksum."""
    content = bytearray(path.read_bytes())
    page = content.rfind(b"OggS")
    count = struct.unpack_from("<Q", content, page + 6)[0]
    struct.pack_into("<Q", content, page + 6, count + samples)
    struct.pack_into("<I", content, page + 22, 0)
    checksum = 0
    for byte in content[page:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x04C11DB7 if checksum & 0x80000000 else 0)
        checksum &= 0xFFFFFFFF
    struct.pack_into("<I", content, page + 22, checksum)
    path.write_bytes(content)


@pytest.mark.parametrize("overstated", [104, 5_806])
def test_an_ogg_file_that_is_whole_but_overstates_its_length_is_read(tmp_path: Path, overstated: int) -> None:
    path = tmp_path / "a.ogg"
    sf.write(path, tone(400_000, 2, 44_100), 44_100)
    before = read(path).samples
    overstate_length(path, overstated)
    about = info(path)
    assert about.frames == before.shape[1] + overstated
    check_end(path, about)
    whole = read(path).samples
    torch.testing.assert_close(whole[:, : before.shape[1]], before, atol=0, rtol=0)
    assert whole.shape[1] == about.frames
    assert not whole[:, before.shape[1] :].any()
    resampled = read(path, sample_rate=22_050).samples
    assert resampled.shape[1] == -(-about.frames // 2)


def test_an_ogg_file_that_lacks_more_than_a_rounding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    sf.write(path, tone(400_000, 2, 44_100), 44_100)
    overstate_length(path, 44_100)
    with pytest.raises(AudioError, match="truncated"):
        read(path)


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    sf.write(path, noise(2_000), 44_100)
    content = bytearray(path.read_bytes())
    content[21:26] = b"\xff" * 5  # the number of samples in a flac's first block: 2^36 of them
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"truncated|cannot be"):
        read(path)


@pytest.mark.parametrize(("place", "value"), [(24, 2_000_000_000), (22, 60_000)])
def test_absurd_rates_and_channels_are_refused(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, noise(2_000), 44_100)
    content = bytearray(path.read_bytes())
    content[place : place + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"cannot be right|cannot be decoded"):
        read(path)


def test_500_damaged_files_end_in_audio_errors_only(tmp_path: Path) -> None:
    rng = random.Random(0)
    good = []
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "opus"):
        path = tmp_path / f"good.{suffix}"
        write(path, torch.from_numpy(tone(6_000, 2, 48_000).T), 48_000)
        good.append(path)
    refused = 0
    for _ in range(500):
        source = rng.choice(good)
        path = tmp_path / f"bad{source.suffix}"
        path.write_bytes(_damage(bytearray(source.read_bytes()), rng))
        try:
            about = info(path)
            check_end(path, about)
            whole = read(path).samples
            read(path, whole.shape[1] // 2, 100)
            read(path, 0, 50, sample_rate=44_100)
        except AudioError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 200


def _damage(content: bytearray, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(content[: rng.randrange(len(content))])
    if kind == 1:
        for _ in range(rng.randrange(1, 30)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.randrange(1, 12)):
            content[rng.randrange(min(120, len(content)))] = rng.randrange(256)
    else:
        return rng.randbytes(rng.randrange(5_000))
    return bytes(content)


def test_reading_past_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, noise(100), 8_000)
    assert read(path, 90, 50).samples.shape == (2, 10)
    with pytest.raises(AudioError, match="sample 101 was requested, but the file ends at 100"):
        read(path, 101, 1)
    with pytest.raises(AudioError, match="must not be negative"):
        read(path, -1)


def test_formats_that_need_ffmpeg_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.m4a").write_bytes(b"anything")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AudioError, match=r"a.m4a: .m4a files need ffmpeg, which is not on the path; install it"):
        info(tmp_path / "a.m4a")


@pytest.mark.skipif(not decoders.has_ffmpeg(), reason="ffmpeg is not installed")
def test_ffmpeg_parts_are_exact(tmp_path: Path) -> None:
    import subprocess

    sf.write(tmp_path / "a.wav", tone(100_000, 2, 44_100), 44_100)
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", tmp_path / "a.m4a"], check=True)
    whole = read(tmp_path / "a.m4a").samples
    assert info(tmp_path / "a.m4a").sample_rate == 44_100
    torch.testing.assert_close(read(tmp_path / "a.m4a", 12_345, 999).samples, whole[:, 12_345:13_344])


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize(
    ("name", "bits", "tolerance"),
    [("a.wav", 16, 4e-5), ("a.wav", 24, 2e-7), ("a.wav", 32, 0), ("a.flac", 16, 4e-5), ("a.flac", 24, 2e-7)],
)
def test_lossless_formats_come_back(tmp_path: Path, name: str, bits: int, tolerance: float) -> None:
    audio = torch.from_numpy(noise(3_000).T)
    write(tmp_path / "deep" / name, audio, 44_100, bits=bits)
    back = read(tmp_path / "deep" / name)
    torch.testing.assert_close(back.samples, audio, atol=tolerance, rtol=0)  # half a step of that many bits
    assert back.sample_rate == 44_100


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_lossy_formats_keep_length_and_place(tmp_path: Path, name: str) -> None:
    audio = torch.from_numpy(tone(100_000, 2, 44_100).T)
    write(tmp_path / name, audio, 44_100, quality=0.9)
    back = read(tmp_path / name).samples
    assert back.shape == audio.shape
    assert torch.corrcoef(torch.stack([audio[0], back[0]]))[0, 1] > 0.95


def test_long_vorbis_files_can_be_written(tmp_path: Path) -> None:
    """libvorbis overflows its stack when it gets a long block at once."""
    write(tmp_path / "a.ogg", 0.1 * torch.randn(1, 3_000_000), 44_100)
    assert info(tmp_path / "a.ogg").frames == 3_000_000


def test_nan_is_never_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write(path, torch.zeros(1, 100), 8_000)
    before = path.read_bytes()
    with pytest.raises(AudioError, match="not written, because the audio holds NaN"):
        write(path, torch.full((1, 100), float("nan")), 8_000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_clipping_happens_only_when_told(tmp_path: Path) -> None:
    loud = torch.full((1, 100), 1.5)
    with pytest.raises(AudioError, match=r"peaks at 1.5 .* pass clip=True"):
        write(tmp_path / "a.wav", loud, 8_000)
    write(tmp_path / "a.wav", loud, 8_000, clip=True)
    assert read(tmp_path / "a.wav").samples.max() <= 1
    write(tmp_path / "b.wav", loud, 8_000, bits=32)
    assert read(tmp_path / "b.wav").samples.max() == 1.5


@pytest.mark.parametrize(
    ("name", "audio", "options", "sentence"),
    [
        ("a.xyz", torch.zeros(1, 9), {}, "cannot write .xyz; use one of .wav"),
        ("a.flac", torch.zeros(1, 9), {"bits": 32}, "flac holds 16 or 24 bits"),
        ("a.wav", torch.zeros(1, 2, 9), {}, r"expected audio of shape \(channels, samples\)"),
        ("a.opus", torch.zeros(1, 9), {}, "cannot be written at 44100 Hz"),
    ],
)
def test_what_cannot_be_written_is_explained(tmp_path: Path, name, audio, options, sentence: str) -> None:
    with pytest.raises(AudioError, match=sentence):
        write(tmp_path / name, audio, 44_100, **options)
    assert not list(tmp_path.iterdir())


def test_errors_survive_a_process_border() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(AudioError("a.wav: broken")))
    assert isinstance(error, AudioError) and str(error) == "a.wav: broken"


def test_reading_a_crop_does_not_read_the_file(tmp_path: Path) -> None:
    """A crop of a long wav takes no more memory than the crop: the block limit is never reached."""
    path = tmp_path / "a.wav"
    sf.write(path, noise(2_000_000), 44_100)
    import tracemalloc

    tracemalloc.start()
    read(path, 1_000_000, 1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # 16 MB would be the whole file
    assert audio_io._BLOCK * 4 <= 1 << 26


def test_an_mp3_that_changes_is_read_anew(tmp_path: Path) -> None:
    """The last mp3 files stay open; what is read must still be what is on disk."""
    path = tmp_path / "a.mp3"
    for made_at in (44_100, 32_000, 44_100):
        sf.write(path, tone(30_000, 1, made_at), made_at)
        whole, rate = sf.read(path, dtype="float32")
        part = read(path, 20_000, 1_000)
        assert part.sample_rate == rate
        torch.testing.assert_close(part.samples[0], torch.from_numpy(whole[20_000:21_000]), atol=3e-7, rtol=0)
    path.unlink()
    with pytest.raises(AudioError, match=r"a.mp3: no such file"):
        read(path, 20_000, 1_000)


def test_a_forked_process_does_not_share_the_place_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    sf.write(path, tone(200_000, 1, 44_100), 44_100)
    expected = read(path, 150_000, 1_000).samples
    pid = os.fork()
    if pid == 0:
        same = all(torch.allclose(read(path, 150_000, 1_000).samples, expected, atol=3e-7) for _ in range(30))
        os._exit(0 if same else 1)
    for start in range(0, 190_000, 7_000):
        read(path, start, 1_000)
    assert os.waitpid(pid, 0)[1] == 0
    torch.testing.assert_close(read(path, 150_000, 1_000).samples, expected, atol=3e-7, rtol=0)


def test_only_so_many_files_stay_open(tmp_path: Path) -> None:
    content = tmp_path / "a.mp3"
    sf.write(content, tone(3_000, 1, 44_100), 44_100)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for i in range(100):
        (tmp_path / f"{i}.mp3").write_bytes(content.read_bytes())
        read(tmp_path / f"{i}.mp3", 100, 100)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 64


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".flac", ".ogg"])
def test_text_under_a_name_of_audio_is_called_text(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("Bass line, 120 bpm, recorded in März\n" * 40, encoding="utf-8")
    with pytest.raises(AudioError, match=rf"notes{suffix}: holds text, not audio$"):
        audio_io.read(path)
    assert capfd.readouterr().err == "", "the decoder prints nothing of its own"
