"""Names that other people's code imports: they exist, and compute what stable-audio-tools 0.0.19 computes."""

import io
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from clients import published_probes
from clients.imports import IMPORTS
from clients.published_names import NOT_OFFERED, OFFERED
from support.small_models import small_model

from stable_audio_tools.models.bottleneck import DitheredFSQBottleneck
from stable_audio_tools.models.conditioners import PretransformConditioner
from stable_audio_tools.models.discriminators import DACGANLoss
from stable_audio_tools.models.pretransforms import PatchedPretransform

FIGURES = json.loads(Path(__file__).with_name("published_figures.json").read_text())


@pytest.mark.parametrize("module", OFFERED)
def test_published_names_import(module):
    home = import_module(f"stable_audio_tools.{module}" if module else "stable_audio_tools")
    missing = [name for name in OFFERED[module].split() if not hasattr(home, name)]
    assert not missing


def test_no_name_is_both_offered_and_not():
    for module, names in NOT_OFFERED.items():
        assert not set(names.split()) & set(OFFERED.get(module, "").split())


def test_published_helpers_compute_what_they_did():
    found = published_probes.figures()
    assert set(found) == set(FIGURES)
    wrong = [name for name, values in FIGURES.items() if found[name] != pytest.approx(values, rel=1e-4, abs=2e-5)]
    assert not wrong


def test_critics_take_fake_and_real_by_position():
    torch.manual_seed(0)
    critic = DACGANLoss(channels=1, periods=[2], fft_sizes=[], checkpointing=False)
    fake, real = torch.randn(1, 1, 400) * 0.1, torch.randn(1, 1, 400)
    joint = critic.loss(real, fake)
    torch.testing.assert_close(critic.discriminator_loss(fake, real), joint.discriminator)
    torch.testing.assert_close(tuple(critic.generator_loss(fake, real)), tuple(joint[1:]))


def test_dithered_tokens_decode_to_frames_first():
    bottleneck = DitheredFSQBottleneck(dim=3, levels=5).eval()
    latents, info = bottleneck.encode(torch.randn(2, 3, 7), return_info=True)
    torch.testing.assert_close(bottleneck.decode_tokens(info["quantizer_indices"]), latents.mT)


def test_a_conditioner_takes_the_weights_of_a_pretransform_it_does_not_save():
    class Learned(PatchedPretransform):
        def __init__(self):
            super().__init__(channels=2, patch_size=4)
            self.layer = torch.nn.Linear(2, 2)

    conditioner = PretransformConditioner(Learned(), output_dim=8)
    assert not any(name.startswith("pretransform.") for name in conditioner.state_dict())
    weights = {"pretransform.layer.weight": torch.eye(2), "pretransform.layer.bias": torch.ones(2)}
    conditioner.load_state_dict({**conditioner.state_dict(), **weights})
    assert torch.equal(conditioner.pretransform.layer.weight, torch.eye(2))
    with pytest.raises(ValueError, match=r"pretransform\.\*: 1 weights do not fit"):
        conditioner.load_state_dict({"pretransform.layer.weight": torch.eye(2)})


def test_a_model_loads_by_the_app_s_published_function(tmp_path):
    gradio = import_module("stable_audio_tools.interface.gradio")
    small = small_model("tiny_autoencoder", tmp_path)
    config = json.loads(small.config.read_text())
    model, loaded = gradio.load_model(config, str(small.weights), device="cpu")
    assert isinstance(model, torch.nn.Module) and loaded["model_type"] == config["model_type"]
    assert (gradio.sample_rate, gradio.sample_size) == (config["sample_rate"], config["sample_size"])
    assert gradio.model is model and gradio.model_type == config["model_type"]


def test_bytes_of_tar_entries_are_decoded():
    dataset = import_module("stable_audio_tools.data.dataset")
    file = io.BytesIO()
    soundfile.write(file, np.zeros((30, 2), dtype="float32"), 8000, format="wav")
    audio, rate = dataset.audio_decoder("a.wav", file.getvalue())
    assert audio.shape == (2, 30) and rate == 8000 and dataset.audio_decoder("a.json", b"") is None
    array = io.BytesIO()
    np.save(array, np.arange(3))
    assert dataset.npy_decoder("a.npy", array.getvalue()).tolist() == [0, 1, 2]
    assert dataset.get_dbmax(torch.tensor([[0.1, -1.0]])) == 0.0


def test_files_of_latents_come_from_a_list_or_a_search(tmp_path):
    dataset = import_module("stable_audio_tools.data.dataset")
    (tmp_path / "a.npy").touch()
    assert dataset.get_latent_filenames(str(tmp_path)) == [str(tmp_path / "a.npy")]
    (tmp_path / "filelist.txt").write_text("b.npy\nc/d.npy\n")
    assert dataset.get_latent_filenames([str(tmp_path)]) == [str(tmp_path / "b.npy"), str(tmp_path / "c" / "d.npy")]


def test_latents_become_points():
    aeiou = import_module("stable_audio_tools.interface.aeiou")
    tokens = torch.randn(2, 6, 10)
    assert aeiou.project_down(tokens).shape == (2, 10, 3)
    assert aeiou.pca_point_cloud(tokens, output_type="points").shape == (20, 6)
    assert aeiou.mel_spectrogram(torch.randn(2, 4096), n_mels=16).shape == (2, 16, 9)
    assert aeiou.power_to_db([1.0, 1e-9]).tolist() == [0.0, -80.0]


@pytest.mark.parametrize("client", IMPORTS)
def test_what_a_project_imports_is_there(client):
    for module, names in IMPORTS[client].items():
        home = import_module(f"stable_audio_tools.{module}" if module else "stable_audio_tools")
        for name in names.split():
            assert hasattr(home, name) or import_module(f"{home.__name__}.{name}"), f"{module}.{name}"


def test_items_of_tars_are_judged():
    dataset = import_module("stable_audio_tools.data.dataset")
    loud = {"json": {}, "audio": torch.ones(1, 8)}
    assert dataset.is_valid_sample(loud) and not dataset.is_valid_sample({"json": {}})
    assert not dataset.is_valid_sample({**loud, "audio": torch.zeros(1, 8)})
    assert not dataset.is_valid_sample({**loud, "json": {"__reject__": True}})
    assert dataset.log_and_continue(ValueError("torn"))
