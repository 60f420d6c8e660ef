"""Tiny models, and apps that serve them on a free port of this machine."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.small_models import SmallModel, small_model

from stable_audio_tools.core.config import load as load_config
from stable_audio_tools.core.config import save
from stable_audio_tools.inference.generation.model import AudioModel, load

USER, PASSWORD = "listener", "open sesame"


class Served(NamedTuple):
    url: str
    model: AudioModel
    folder: Path


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    return lambda name: prompted(folder) if name == "prompted" else small_model(name, folder)


@pytest.fixture(scope="session")
def loaded(small_files: Any) -> Any:
    made: dict[str, AudioModel] = {}

    def get(name: str) -> AudioModel:
        if name not in made:
            files: SmallModel = small_files(name)
            made[name] = load(files.config, files.weights, "cpu")
        return made[name]

    return get


@pytest.fixture(scope="session")
def served(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`served(name, login=False)`: the app of that model, running."""
    pytest.importorskip("gradio", reason="the extra 'ui' is not installed")
    from stable_audio_tools.interface.gradio import create_app, serve

    running: dict[tuple[str, bool], tuple[Any, Served]] = {}
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))

    def get(name: str, login: bool = False) -> Served:
        if (name, login) not in running:
            folder = tmp_path_factory.mktemp("app")
            app = create_app(loaded(name), name, folder)
            who = {"username": USER, "password": PASSWORD} if login else {}
            _, url, _ = serve(app, prevent_thread_lock=True, quiet=True, **who)
            running[name, login] = (app, Served(url, loaded(name), folder))
        return running[name, login][1]

    yield get
    for app, _ in running.values():
        app.close(verbose=False)
    patch.undo()


def prompted(folder: Path) -> SmallModel:
    """The tiny text-to-audio model, told a text instead of a name from a list, and with the objective v."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from stable_audio_tools.models import create_model_from_config
    from stable_audio_tools.models.checkpoints import save_weights

    made = SmallModel(folder / "prompted.json", folder / "prompted.safetensors")
    if made.weights.exists():
        return made
    words = ["<pad>", "<unk>", "rain", "on", "a", "tin", "roof", "bells"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(str(folder / "words"))

    config = load_config(small_model("tiny_diffusion_cond", folder).config)
    body = config["model"]
    body["conditioning"]["configs"][0] = {
        "id": "prompt",
        "type": "lut",
        "config": {"tokenizer_name": str(folder / "words"), "vocab_size": len(words), "max_length": 8},
    }
    body["diffusion"]["cross_attention_cond_ids"] = ["prompt", "seconds_total"]
    body["diffusion"]["global_cond_ids"] = ["seconds_total"]
    body["diffusion"]["config"]["global_cond_dim"] = 64
    body["diffusion"]["diffusion_objective"] = "v"
    save(config, made.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_weights(create_model_from_config(config), made.weights, model_config=config)
    return made
