"""Presets give the vectors of the tools they are named after; published weights are fetched and checked."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_clap import small_clap, write_folder
from torch.nn import functional as F

from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.evaluation.embedders import Embedder, create_embedder, published
from stable_audio_tools.evaluation.embedders.presets import PRESETS
from stable_audio_tools.evaluation.embedders.published import HubFile, WebFile, weight_file


def sound(rate: int, seconds: float) -> torch.Tensor:
    """A quiet chord that changes, on 16-bit levels."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(round(rate * seconds)) / rate
    audio = 0.2 * torch.sin(2 * torch.pi * (220 * t + 10 * torch.sin(t))) + 0.02 * torch.randn(
        len(t), generator=generator
    )
    return (audio * 32767).round() / 32768


def preset(tag: str, folder: object) -> Embedder:
    """The preset with the weights of a folder."""
    node = PRESETS[tag]
    config = {key: value for key, value in node["config"].items() if key != "checkpoint"}
    return create_embedder({"type": node["type"], "config": {**config, "name": str(folder)}})


def test_clap_of_fadtk_has_a_window_each_second_filled_with_silence(clap_folder: str) -> None:
    embedder = preset("clap-laion-music", clap_folder)
    audio = sound(48000, 11.4)
    starts = range(0, len(audio), 48000)
    chunks = torch.stack([F.pad(audio[s : s + 480000], (0, max(0, s + 480000 - len(audio)))) for s in starts])
    with torch.inference_mode():
        expected = torch.cat([embedder.network(chunk[None]) for chunk in chunks])
    found = embedder.frames(audio)
    assert found.shape == (12, 512)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


def test_dac_of_fadtk_sets_the_loudness_and_overlaps_its_windows(tmp_path: Path) -> None:
    """fadtk's steps with the package that it uses for them."""
    audiotools = pytest.importorskip("audiotools")
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "n_codebooks": 2, "codebook_size": 4}
    model = DacModel(DacConfig(downsampling_ratios=[5, 7], codebook_dim=2, sampling_rate=44100, **sizes)).eval()
    model.save_pretrained(tmp_path / "dac")
    audio = sound(44100, 6.2)
    signal = audiotools.AudioSignal(audio[None, None].clone(), 44100)
    signal.normalize(-16)
    signal.ensure_max_of_audio()
    signal.zero_pad_to(2 * 5 * 44100)
    windows = signal.collect_windows(5.0, 2.5).audio_data
    with torch.inference_mode():
        expected = torch.cat([model.encoder(window[None])[0].T for window in windows])
    found = torch.from_numpy(preset("dac-44kHz", tmp_path / "dac").frames(audio))
    assert len(windows) == 5 and found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize(("name", "rate", "channels"), [("encodec-emb", 24000, 1), ("encodec-emb-48k", 48000, 2)])
def test_encodec_of_fadtk_takes_the_whole_file_or_seconds_of_it(
    name: str, rate: int, channels: int, tmp_path: Path
) -> None:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    sizes = {"num_filters": 4, "hidden_size": 8, "codebook_size": 4, "codebook_dim": 8, "upsampling_ratios": [4, 2]}
    config = EncodecConfig(normalize=channels == 2, audio_channels=channels, sampling_rate=rate, **sizes)
    model = EncodecModel(config).eval()
    model.save_pretrained(tmp_path / "encodec")
    audio = sound(rate, 2.3)
    pieces = audio.split(rate) if channels == 2 else (audio,)
    with torch.inference_mode():
        expected = torch.cat([model.encoder(piece.expand(1, channels, -1))[0].T for piece in pieces])
    found = preset(name, tmp_path / "encodec").frames(audio)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("seconds", "lengths"), [(3.0, [10]), (12.3, [10, 10]), (26.0, [10] * 5), (11.0, [10, 10])])
def test_passt_windows_of_stable_audio_metrics(
    seconds: float, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peak of -1 dB, and a window of ten seconds every five, up to the last five."""
    seen: list[torch.Tensor] = []

    class Network(torch.nn.Module):
        def get_scene_embeddings(self, audio: torch.Tensor) -> torch.Tensor:
            seen.append(audio)
            return torch.zeros(len(audio), 527 + 768)

    embedder = create_embedder("passt-stable-audio")
    embedder.network = Network()
    assert embedder.gives_logits
    audio = sound(32000, seconds)
    embedder.frames(audio)
    assert [piece.shape[-1] / 32000 for piece in seen] == lengths
    scaled = audio * (10 ** (-1 / 20) / audio.abs().max())
    for number, piece in enumerate(seen):
        start = 5 * 32000 * number
        part = scaled[start : start + 320000]
        assert piece[0, : len(part)] == pytest.approx(part, abs=1e-6) and not piece[0, len(part) :].any()


def test_whole_clips_are_fused_as_clap_does_it(tmp_path: Path) -> None:
    """A summary of the mel and three crops, marked as longer, through CLAP of transformers itself."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(0)
    config = small_clap(64).config.to_dict()
    config["audio_config"] |= {"enable_fusion": True, "fusion_type": "aff_2d"}
    clap = ClapModel(ClapConfig(**{k: config[k] for k in ("text_config", "audio_config")})).eval()
    folder = write_folder(clap, tmp_path)
    ClapFeatureExtractor(frequency_min=50, truncation="fusion").save_pretrained(folder)
    audio = sound(48000, 13.0)
    features = ClapFeatureExtractor.from_pretrained(folder)
    np.random.seed(0)
    inputs = features(audio.numpy(), sampling_rate=48000, return_tensors="pt")
    assert inputs["is_longer"].tolist() == [[True]]
    with torch.inference_mode():
        output = clap.audio_model(input_features=inputs["input_features"], is_longer=inputs["is_longer"])
        expected = F.normalize(clap.audio_projection(output.pooler_output), dim=-1)
    whole = create_embedder({"type": "clap", "config": {"name": str(folder), "clip": "whole"}})
    found = whole.frames(audio)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    np.random.seed(3)
    assert whole.frames(audio).tobytes() == found.tobytes()  # the crops do not depend on what was drawn before
    windows = create_embedder({"type": "clap", "config": {"name": str(folder)}})
    assert windows.fingerprint != whole.fingerprint


def test_stereo_openl3_puts_left_and_right_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    calls: list[dict[str, Any]] = []

    def get_audio_embedding(clips: list[np.ndarray], rate: int, **options: Any) -> tuple[Any, Any]:
        calls.append({"rate": rate, **{key: options[key] for key in ("center", "hop_size")}})
        return [np.full((7, 512), clip.max()) for clip in clips], None

    package = ModuleType("openl3")
    package.get_audio_embedding = get_audio_embedding  # type: ignore[attr-defined]
    package.models = ModuleType("openl3.models")  # type: ignore[attr-defined]
    package.models.load_audio_embedding_model = lambda **settings: object()
    monkeypatch.setitem(sys.modules, "openl3", package)
    embedder = create_embedder("openl3-stable-audio")
    assert (embedder.sample_rate, embedder.channels) == (44100, 2)
    found = embedder.frames(torch.stack([torch.full((132300,), 0.5), torch.full((132300,), 0.25)]))
    assert found.shape == (7, 1024)
    peak = 10 ** (-1 / 20)
    assert found[:, 0] == pytest.approx(peak) and found[:, 512] == pytest.approx(peak / 2)  # one level for both
    assert calls == [{"rate": 44100, "center": True, "hop_size": 0.5}] * 2


# ------------------------------------------------------------------ published weights


def test_weights_of_the_hub_cache_are_checked_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache names a large file by its SHA-256 and links to it."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "630k-audioset-best.pt"
    link.symlink_to(blob)
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, name: str) -> Path:
        asked.append((repository, name))
        return link

    monkeypatch.setattr("stable_audio_tools.models.pretrained.fetch_from_hub", fetch)
    assert weight_file("630k-audioset-best.pt", "clap.checkpoint") == str(link)
    assert asked == [("lukewys/laion_clap", "630k-audioset-best.pt")]
    blob.write_bytes(b"cut o")
    with pytest.raises(CheckpointError, match=r"its SHA-256 is \w+\.\.\., expected .* delete it"):
        weight_file("630k-audioset-best.pt", "clap.checkpoint")
    (tmp_path / "mine.pt").write_bytes(b"")
    assert weight_file(str(tmp_path / "mine.pt"), "clap.checkpoint") == str(tmp_path / "mine.pt")


def test_offline_the_message_names_file_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = (tmp_path / "absent").as_uri()  # a download that fails without asking the network
    monkeypatch.setitem(published.PUBLISHED, "vggish-10086976.pth", WebFile(url, "10086976"))
    with pytest.raises(UserError, match=r"vggish.checkpoint: vggish-10.* copy it to .*hub/checkpoints/vggish"):
        create_embedder("vggish").frames(torch.zeros(16000))

    def fail(repository: str, name: str) -> Path:
        raise CheckpointError("no network")

    monkeypatch.setattr("stable_audio_tools.models.pretrained.fetch_from_hub", fail)
    with pytest.raises(UserError, match=r"run `hf download lukewys/laion_clap music_audioset_epoch_15_esc_90.14.pt`"):
        create_embedder("clap-laion-music").frames(torch.zeros(48000))
    assert isinstance(published.PUBLISHED["630k-audioset-fusion-best.pt"], HubFile)


def test_a_downloaded_file_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "release").write_bytes(b"vggish")
    digest = hashlib.sha256(b"vggish").hexdigest()
    monkeypatch.setitem(published.PUBLISHED, "x.pth", WebFile((tmp_path / "release").as_uri(), digest[:8]))
    path = Path(weight_file("x.pth", "vggish.checkpoint"))
    assert path == tmp_path / "home" / "hub" / "checkpoints" / "x.pth" and path.read_bytes() == b"vggish"
    (tmp_path / "release").unlink()
    assert weight_file("x.pth", "vggish.checkpoint") == str(path)  # not downloaded again
