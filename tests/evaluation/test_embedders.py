"""Every embedder through its real loader: tiny random networks in files, against what those networks give by hand."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.small_clap import tokenizer
from support.small_sounds import tone
from torch import nn
from torch.nn import functional as F

from stable_audio_tools.core.config import components
from stable_audio_tools.core.errors import CheckpointError, ConfigError, MissingPackage, UserError
from stable_audio_tools.evaluation.embedders import create_embedder, require_texts
from stable_audio_tools.evaluation.embedders.vggish import VggishNetwork, log_mel, mel_bank


def sound(rate: int, seconds: float) -> torch.Tensor:
    return tone(1, seconds * rate / 16000)[0]


def node(tag: str, **config: Any) -> dict[str, Any]:
    return {"type": tag, "config": config}


# ------------------------------------------------------------------ without weights


@pytest.mark.parametrize("name", ["logmel", "mfcc"])
def test_spectral_statistics_follow_the_sound(name: str) -> None:
    embedder = create_embedder(name)
    audio = sound(embedder.sample_rate, 2.2)
    found = embedder.frames(audio)
    assert found.dtype == np.float32 and found.ndim == 2 and len(found) == 2
    assert not np.allclose(found, embedder.frames(audio.flip(0)[: len(audio) // 2]).mean(0), atol=0.1)
    assert np.isfinite(embedder.frames(torch.zeros(10))).all()  # silence, and next to nothing of it
    assert embedder.weights == "none"


def test_a_gain_shifts_the_log_mel_means_and_nothing_else() -> None:
    embedder = create_embedder("logmel:bands=32")
    audio = 0.1 * torch.randn(32000, generator=torch.Generator().manual_seed(0))
    loud, quiet = embedder.frames(audio), embedder.frames(audio / 10)
    assert loud[:, :32] - quiet[:, :32] == pytest.approx(2.0, abs=1e-3)  # 20 dB
    assert loud[:, 32:] == pytest.approx(quiet[:, 32:], abs=1e-3)


# ------------------------------------------------------------------ CLAP


def test_clap_by_folder_is_that_of_transformers(clap_folder: str) -> None:
    from transformers import ClapModel

    clap = ClapModel.from_pretrained(clap_folder).eval()
    embedder = require_texts(create_embedder(node("clap", name=clap_folder)))
    audio = sound(48000, 14.0)
    found = embedder.frames(audio)
    assert found.shape == (1, 512)  # four seconds more are less than half a hop
    features = embedder.network.features
    mels = features(audio[:480000].numpy(), sampling_rate=48000, return_tensors="pt").input_features
    with torch.no_grad():
        wanted = clap.audio_projection(
            clap.audio_model(mels, is_longer=torch.zeros(1, 1, dtype=torch.bool)).pooler_output
        )
    torch.testing.assert_close(torch.from_numpy(found[:1]), F.normalize(wanted, dim=-1), rtol=0, atol=1e-5)

    tokens = tokenizer()(["a slow piano"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        text = clap.text_projection(clap.text_model(tokens.input_ids, tokens.attention_mask).pooler_output)
    torch.testing.assert_close(
        torch.from_numpy(embedder.embed_texts(["a slow piano"])), F.normalize(text, dim=-1), rtol=0, atol=1e-5
    )


def test_clap_of_a_checkpoint_is_the_same_clap(clap_folder: str, clap_checkpoint: str) -> None:
    audio = sound(48000, 3.0)
    folder = create_embedder(node("clap", name=clap_folder))
    checkpoint = create_embedder(node("clap", checkpoint=clap_checkpoint, tokenizer=clap_folder))
    assert checkpoint.frames(audio) == pytest.approx(folder.frames(audio), abs=1e-5)
    texts = [require_texts(one).embed_texts(["rain", "a piano"]) for one in (folder, checkpoint)]
    assert texts[1] == pytest.approx(texts[0], abs=1e-5)


def test_clap_gives_the_same_bytes_in_any_company(clap_folder: str) -> None:
    """No crop is drawn at random, and no text is padded to its neighbours."""
    embedder = require_texts(create_embedder(node("clap", name=clap_folder)))
    audio = sound(48000, 23.0)
    np.random.seed(0)
    first = embedder.frames(audio, batch_size=1)
    np.random.seed(1)
    assert first.tobytes() == embedder.frames(audio, batch_size=3).tobytes()
    assert len(first) == 2  # 0 to 10, 10 to 20; three seconds are less than half a hop
    texts = ["rain", "a slow piano a slow piano"]
    assert embedder.embed_texts(texts)[0].tobytes() == embedder.embed_texts(texts[:1])[0].tobytes()


def test_identity_changes_with_the_weights_and_not_with_their_place(clap_folder: str, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(clap_folder, copy)
    here, there = (create_embedder(node("clap", name=str(folder))) for folder in (clap_folder, copy))
    assert here.identity == there.identity and here.fingerprint == there.fingerprint
    with torch.no_grad():
        next(there.network.parameters()).add_(1e-3)
    changed = create_embedder(node("clap", name=str(copy)))
    changed.network = there.network
    assert changed.fingerprint != here.fingerprint
    assert create_embedder(node("clap", name=str(copy), hop_seconds=1.0)).fingerprint != here.fingerprint


# ------------------------------------------------------------------ others of transformers


def save_wav2vec(folder: Path, model: Any, rate: int, normalise: bool = True) -> str:
    from transformers import Wav2Vec2FeatureExtractor

    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=normalise).save_pretrained(folder)
    return str(folder)


def small_hubert() -> Any:
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8, 8],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2,
    )
    return HubertModel(config).eval()


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_wav2vec_families_give_the_states_of_a_layer(layer: int, tmp_path: Path) -> None:
    model = small_hubert()
    name = save_wav2vec(tmp_path / "hubert", model, 16000)
    whole = create_embedder(node("wav2vec", name=name, layer=layer, keep_frames=True, window_seconds=1.0))
    mean = create_embedder(node("wav2vec", name=name, layer=layer, window_seconds=1.0))
    audio = sound(16000, 1.0)
    normal = (audio - audio.mean()) / (audio.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        states = model(normal[None], output_hidden_states=True).hidden_states[layer][0]
    torch.testing.assert_close(torch.from_numpy(whole.frames(audio)), states, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(mean.frames(audio)), states.mean(0, keepdim=True), rtol=0, atol=1e-5)
    assert whole.fingerprint != mean.fingerprint


def test_mert_runs_as_a_hubert_without_code_from_its_repository(tmp_path: Path) -> None:
    model = small_hubert()
    name = save_wav2vec(tmp_path / "mert", model, 24000)
    stored = json.loads((tmp_path / "mert" / "config.json").read_text())
    stored |= {"model_type": "mert_model", "auto_map": {"AutoModel": "modeling_MERT.MERTModel"}}
    stored |= {"feature_extractor_cqt": False, "deepnorm": False, "attention_relax": -1.0}
    (tmp_path / "mert" / "config.json").write_text(json.dumps(stored))
    found = create_embedder(node("mert", name=name, layer=1)).frames(sound(24000, 1.0))
    plain = create_embedder(
        node("wav2vec", name=save_wav2vec(tmp_path / "hubert", model, 24000), layer=1, sample_rate=24000)
    )
    assert found == pytest.approx(plain.frames(sound(24000, 1.0)), abs=1e-6)
    (tmp_path / "mert" / "config.json").write_text(json.dumps({**stored, "feature_extractor_cqt": True}))
    with pytest.raises(UserError, match="uses feature_extractor_cqt, which HuBERT lacks"):
        create_embedder(node("mert", name=name)).frames(sound(24000, 1.0))


def test_a_wrong_rate_or_layer_is_refused(tmp_path: Path) -> None:
    name = save_wav2vec(tmp_path / "hubert", small_hubert(), 24000)
    with pytest.raises(UserError, match=r"wav2vec\.sample_rate: .* works at 24000 Hz, got 16000"):
        create_embedder(node("wav2vec", name=name)).frames(sound(16000, 1.0))
    with pytest.raises(UserError, match=r"wav2vec\.layer: expected from -3 to 2, got 9"):
        create_embedder(node("wav2vec", name=name, sample_rate=24000, layer=9)).frames(sound(24000, 1.0))


def test_encodec_before_its_quantiser(tmp_path: Path) -> None:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    sizes = {"num_filters": 4, "hidden_size": 8, "codebook_size": 4, "codebook_dim": 8, "upsampling_ratios": [4, 2]}
    for normalize, channels in ((False, 1), (True, 2)):
        model = EncodecModel(EncodecConfig(normalize=normalize, audio_channels=channels, **sizes)).eval()
        model.save_pretrained(tmp_path / str(channels))
        audio = sound(24000, 1.0)
        given = audio.expand(1, channels, -1)
        given = given / (audio.square().mean().sqrt() + 1e-8) if normalize else given
        with torch.no_grad():
            wanted = model.encoder(given)[0].T
        name = str(tmp_path / str(channels))
        found = create_embedder(node("encodec", name=name, keep_frames=True)).frames(audio)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5)


def test_dac_before_its_quantiser(tmp_path: Path) -> None:
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=16,
        n_codebooks=2,
        codebook_size=4,
        codebook_dim=2,
        sampling_rate=44100,
    )
    model = DacModel(config).eval()
    model.save_pretrained(tmp_path / "dac")
    audio = sound(44100, 1.0)
    with torch.no_grad():
        wanted = model.encoder(audio[None, None])[0].T.mean(0, keepdim=True)
    found = create_embedder(node("dac", name=str(tmp_path / "dac"))).frames(audio)
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"dac\.sample_rate: .* works at 44100 Hz, got 24000"):
        create_embedder(node("dac", name=str(tmp_path / "dac"), sample_rate=24000)).frames(audio)


def test_a_classifier_gives_its_scores(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=5,
        max_length=128,
        num_mel_bins=32,
    )
    model = ASTForAudioClassification(config).eval()
    model.save_pretrained(tmp_path / "ast")
    features = ASTFeatureExtractor(max_length=128, num_mel_bins=32)
    features.save_pretrained(tmp_path / "ast")
    audio = sound(16000, 1.0)
    with torch.no_grad():
        wanted = model(**features(audio.numpy(), sampling_rate=16000, return_tensors="pt")).logits
    embedder = create_embedder(node("classifier", name=str(tmp_path / "ast")))
    assert embedder.gives_logits
    torch.testing.assert_close(torch.from_numpy(embedder.frames(audio)), wanted, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ VGGish


@pytest.fixture(scope="module")
def vggish_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    torch.save(VggishNetwork([2, 3, 4, 4, 5, 5], [7, 7, 6]).state_dict(), path)
    return str(path)


def test_vggish_windows_are_the_examples_of_the_whole_file(vggish_checkpoint: str) -> None:
    """Framed as the original frames a file: examples of 96 frames of one long spectrogram."""
    embedder = create_embedder(f"vggish:checkpoint={vggish_checkpoint}")
    audio = sound(16000, 3.0)
    frames = audio.unfold(0, 400, 160)
    spectrum = torch.fft.rfft(frames * torch.hann_window(400), 512).abs()
    mel = (spectrum @ mel_bank() + 0.01).log()
    examples = torch.stack([mel[start : start + 96] for start in range(0, len(mel) - 95, 96)])
    network = embedder.network
    layers = [maps for maps in network.features if not isinstance(maps, nn.ReLU)]
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [2, 3, 4, 4, 5, 5]
    with torch.no_grad():
        wanted = network(examples[:, None])
    assert len(wanted) == 3
    torch.testing.assert_close(torch.from_numpy(embedder.frames(audio)), wanted, rtol=0, atol=1e-5)


def test_vggish_front_end() -> None:
    """A sine falls into the bands whose triangles hold its frequency, and silence is log 0.01."""
    bank = mel_bank()
    assert bank.shape == (257, 64) and bank[0].sum() == 0 and (bank.sum(0) > 0).all() and bank.max() <= 1
    assert bank[: int(125 / 31.25)].sum() == 0 and bank[int(7500 / 31.25) + 1 :].sum() == 0
    assert log_mel(torch.zeros(1, 15600))[0] == pytest.approx(np.log(0.01), abs=1e-6)
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(15600) / 16000)[None]
    loudest = log_mel(sine)[0].mean(0).argmax()
    assert bank[32, loudest] > 0  # bin 32 is 1000 Hz


def test_a_file_that_is_no_vggish_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of VGGish"):
        create_embedder(node("vggish", checkpoint=str(tmp_path / "other.pth"))).frames(torch.zeros(16000))


# ------------------------------------------------------------------ packages that may not be there


def test_passt_takes_scores_or_features_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wrapper gives 527 scores, then 768 features."""

    class Wrapper(nn.Module):
        def get_scene_embeddings(self, audio: torch.Tensor) -> torch.Tensor:
            assert audio.shape == (1, 32000)
            return torch.arange(527.0 + 768)[None]

    package, base = ModuleType("hear21passt"), ModuleType("hear21passt.base")
    base.load_model = Wrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hear21passt", package)
    monkeypatch.setitem(sys.modules, "hear21passt.base", base)
    scores, features = create_embedder("passt:output=logits"), create_embedder("passt")
    assert scores.gives_logits and not features.gives_logits
    assert scores.frames(torch.zeros(32000))[0].tolist() == list(range(527))
    assert features.frames(torch.zeros(32000))[0].tolist() == list(range(527, 527 + 768))


def test_openl3_takes_a_vector_per_second_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function gives lists of vectors (frames, d) for lists of sounds."""

    class Model:
        def get_weights(self) -> list[np.ndarray]:
            return [np.ones(3)]

    def get_audio_embedding(clips: list[np.ndarray], rate: int, model: Model, **options: Any) -> tuple[Any, Any]:
        assert rate == 48000 and {len(clip) for clip in clips} == {48000} and options["center"] is False
        return [np.full((1, 512), clip.sum()) for clip in clips], [np.zeros(1) for _ in clips]

    package = ModuleType("openl3")
    package.models = ModuleType("openl3.models")  # type: ignore[attr-defined]
    package.models.load_audio_embedding_model = lambda input_repr, content_type, embedding_size: Model()
    package.get_audio_embedding = get_audio_embedding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openl3", package)
    embedder = create_embedder("openl3")
    assert embedder.frames(torch.ones(2 * 48000 + 100)).tolist() == [[48000.0] * 512] * 2
    assert len(embedder.weights) == 16


@pytest.mark.parametrize(("name", "package"), [("passt", "hear21passt"), ("openl3", "openl3")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"{package} is .*pip install {package}"):
        create_embedder(name).frames(torch.zeros(48000))


# ------------------------------------------------------------------ names


def test_names_of_fadtk_and_keys_behind_a_name() -> None:
    embedder = create_embedder("MERT-v1-95M-7")
    assert (embedder.tag, embedder.settings) == ("mert", {"layer": 7, "keep_frames": True})
    assert create_embedder("clap:name=laion/clap-htsat-fused,hop_seconds=5.0").windows.hop_seconds == 5.0
    assert create_embedder({"type": "logmel", "config": {"bands": 16}}).settings == {"bands": 16}


def test_a_node_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(node("mfcc", coefficients=5)))
    assert create_embedder(str(tmp_path / "mine.json")).settings["coefficients"] == 5


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("logmell", "no embedder named 'logmell'; did you mean 'logmel'"),
        ("logmel:bandz=3", "unknown key; did you mean 'bands'"),
        ("logmel:bands", "expected NAME:key=value,key=value"),
        ("clap", "give one of name .* and checkpoint"),
        ("clap:name=x,window_seconds=11.0", "a window of CLAP has at most 10 s, got 11"),
        ("encodec-emb-3", "no embedder named 'encodec-emb-3'"),
    ],
)
def test_mistakes_in_names(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        create_embedder(name)


def test_only_clap_takes_texts() -> None:
    with pytest.raises(UserError, match="'logmel' takes no texts; agreement with prompts needs 'clap'"):
        require_texts(create_embedder("logmel"))


def test_every_embedder_is_built_without_weights_or_network() -> None:
    needed = {"clap": {"name": "laion/clap-htsat-fused"}, "vggish": {"checkpoint": "vggish.pth"}}
    for tag in components("embedder"):
        assert create_embedder({"type": tag, "config": needed.get(tag, {})}).tag == tag
