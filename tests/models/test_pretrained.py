"""The fast path gives the models that a build and a load give: same tensors, same numbers, less work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import parity_cases as cases
from support.parity_figures import check, load_weights
from torch import nn

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_into, parameters_on_meta, save_weights
from stable_audio_tools.models.pretrained import get_pretrained_model, load_model


def small_config() -> dict[str, Any]:
    return cases.dit(
        "v",
        {"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 16, "global_cond_dim": 32},
    )


NO_MODEL = (
    "critic-",
    "data-",
    "loss-",
    "pretransform-pqmf",
    "pretransform-wavelet",
    "sample-",
    "schedules",
)  # or one that other cases have


@pytest.mark.parametrize("name", [name for name in sorted(cases.CASES) if not name.startswith(NO_MODEL)])
def test_every_kind_of_model_gives_its_recorded_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built without weights, filled from a file, and held against the same figures as a normal build."""
    made = []

    def through_a_file(config: dict[str, Any]) -> nn.Module:
        model = load_weights(create_model_from_config(config))
        suffix = "safetensors" if len(name) % 2 else "ckpt"
        path = save_weights(model, tmp_path / f"{len(made)}.{suffix}")
        made.append(load_model(config, path))
        return made[-1]

    monkeypatch.setattr(cases, "build", through_a_file)
    check(name, cases.CASES[name])
    assert made, "the case builds no model from a config"


def test_every_tensor_equals_that_of_a_normal_build(tmp_path: Path) -> None:
    config = small_config()
    slow = load_weights(create_model_from_config(config)).eval()
    fast = load_model(config, save_weights(slow, tmp_path / "model.safetensors"))
    for ours, theirs in ((fast.named_parameters(), slow), (fast.named_buffers(), slow)):
        for name, tensor in ours:
            owner, _, leaf = name.rpartition(".")
            expected = getattr(theirs.get_submodule(owner), leaf)
            assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype, name
            assert tensor.requires_grad == expected.requires_grad, name
    assert [name for name, _ in fast.named_buffers()] == [name for name, _ in slow.named_buffers()]
    assert not fast.training


def test_loaded_models_train(tmp_path: Path) -> None:
    config = small_config()
    path = save_weights(create_model_from_config(config), tmp_path / "model.safetensors")
    before = path.read_bytes()
    model = load_model(config, path).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(p.square().sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    assert path.read_bytes() == before


def test_precision_of_the_file_and_of_the_model(tmp_path: Path) -> None:
    config = small_config()
    path = save_weights(create_model_from_config(config), tmp_path / "half.safetensors", dtype=torch.float16)
    assert {p.dtype for p in load_model(config, path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(config, path, dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_the_config_may_come_with_the_weights(tmp_path: Path) -> None:
    config = small_config()
    model = create_model_from_config(config)
    with_config = save_weights(model, tmp_path / "a.safetensors", model_config=config)
    assert set(load_model(None, with_config).state_dict()) == set(model.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config))
    without = save_weights(model, tmp_path / "b.ckpt")
    load_model(tmp_path / "config.json", without)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: no model config is stored with these weights"):
        load_model(None, without)


def test_anything_but_a_fit_is_an_error_unless_partial(tmp_path: Path) -> None:
    config = small_config()
    state = create_model_from_config(config).state_dict()
    half = {name: torch.full_like(value, 0.5) for name, value in state.items() if name.startswith("pretransform.")}
    path = save_weights(half, tmp_path / "part.ckpt")
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model\n.*missing from the file: .*partial=True"):
        load_model(config, path)
    model = load_model(config, path, partial=True)
    assert all((value == 0.5).all() for name, value in model.state_dict().items() if name in half)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    nothing = save_weights({"x.weight": torch.zeros(2)}, tmp_path / "nothing.ckpt")
    with pytest.raises(CheckpointError, match="none of its 1 tensors fits the model"):
        load_model(config, nothing, partial=True)


def test_older_adaln_weights_choose_their_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = cases.dit("v", {"io_channels": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "cond_token_dim": 16})
    transformer = config["model"]["diffusion"]["config"]
    transformer |= {"global_cond_dim": 32, "global_cond_type": "adaLN", "adaln_layout": "per_layer"}
    model = load_weights(create_model_from_config(config))
    del transformer["adaln_layout"]
    path = save_weights(model, tmp_path / "model.ckpt")
    with caplog.at_level("INFO"):
        loaded = load_model(config, path)
    assert "one adaLN projection per layer" in caplog.text
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert "adaln_layout" not in transformer
    with pytest.raises(CheckpointError, match='"adaln_layout": "per_layer"'):
        load_into(create_model_from_config(config), path)


class Tied(nn.Module):
    """One parameter under two names: given by attribute, or registered twice before it has a home."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        if early:
            self.embed.weight = shared = nn.Parameter(torch.randn(5, 3))
            self.head.weight = shared
        else:
            self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.plain = torch.arange(3.0)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("names", [("embed.weight", "head.weight"), ("embed.weight",), ("head.weight",)])
def test_shared_parameters_stay_shared(early: bool, names: tuple[str, ...]) -> None:
    with parameters_on_meta():
        model = Tied(early)
    assert model.embed.weight.is_meta and model.embed.weight is model.head.weight
    weight = torch.randn(5, 3)
    assert load_into(model, dict.fromkeys(names, weight)).complete
    assert model.embed.weight is model.head.weight
    assert torch.equal(model.head.weight, weight)
    assert torch.equal(model.table, torch.arange(4.0)) and torch.equal(model.plain, torch.arange(3.0))


FILLS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 4),
    "embedding": lambda: nn.Embedding(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "lstm": lambda: nn.LSTM(3, 4),
    "weight norm": lambda: nn.utils.weight_norm(nn.Conv1d(3, 4, 3)),
    "new weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3)),
    "batch norm": lambda: nn.BatchNorm1d(4),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", FILLS)
def test_torch_modules_build_without_values_and_load(kind: str) -> None:
    full = FILLS[kind]()
    with parameters_on_meta():
        empty = FILLS[kind]()
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert load_into(empty, full.state_dict()).complete
    assert all(torch.equal(a, b) for a, b in zip(empty.state_dict().values(), full.state_dict().values()))


def test_a_part_may_be_loaded_while_the_whole_is_built() -> None:
    with parameters_on_meta():
        part = nn.Linear(2, 2)
        load_into(part, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
        rest = nn.Linear(2, 2)
    assert torch.equal(part.weight, torch.ones(2, 2)) and rest.weight.is_meta


def test_nothing_stays_behind_after_building() -> None:
    with pytest.raises(RuntimeError, match="inside"), parameters_on_meta():
        raise RuntimeError("inside")
    assert not nn.Linear(2, 2).weight.is_meta


def write_model_folder(folder: Path) -> dict[str, Any]:
    config = small_config()
    save_weights(load_weights(create_model_from_config(config)), folder / "model.safetensors")
    (folder / "model_config.json").write_text(json.dumps(config))
    return config


def test_get_pretrained_model_from_a_folder(tmp_path: Path) -> None:
    written = write_model_folder(tmp_path)
    model, config = get_pretrained_model(str(tmp_path))
    assert config == written
    expected = load_weights(create_model_from_config(config)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    (tmp_path / "model_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model_config\.json in this folder"):
        get_pretrained_model(tmp_path)


def hub_cache(folder: Path, name: str) -> Path:
    """An empty snapshot in the layout of the hub's cache."""
    repository = folder / f"models--{name.replace('/', '--')}"
    revision = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_cached_hub_models_need_no_network(tmp_path: Path) -> None:
    written = write_model_folder(hub_cache(tmp_path, "owner/model"))
    model, config = get_pretrained_model("owner/model", cache_dir=tmp_path)
    assert config == written and next(model.parameters()).isfinite().all()


@pytest.mark.usefixtures("no_network")
def test_a_cached_ckpt_is_used_where_there_is_no_safetensors(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "owner/model")
    write_model_folder(snapshot)
    model = load_model(snapshot / "model_config.json", snapshot / "model.safetensors")
    save_weights(model, snapshot / "model.ckpt")
    (snapshot / "model.safetensors").unlink()
    get_pretrained_model("owner/model", cache_dir=tmp_path)


def test_hub_trouble_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/owner/model"))
    cases_of_trouble = {
        errors.GatedRepoError("gated", response=response): "accept the licence at https://huggingface.co/owner/model",
        errors.RepositoryNotFoundError("no", response=response): "neither a folder here nor a repository at",
        errors.RevisionNotFoundError("no", response=response): "no revision 'v9'",
        errors.LocalEntryNotFoundError("offline"): "is not in the local cache and https://huggingface.co/owner/model",
        errors.EntryNotFoundError("no"): "holds no model_config.json with model.safetensors or",
        OSError("disk full"): "could not be downloaded from https://huggingface.co/owner/model",
    }
    for error, sentence in cases_of_trouble.items():

        def download(*_: Any, local_files_only: bool, error: Exception = error, **__: Any) -> str:
            raise errors.LocalEntryNotFoundError("not cached") if local_files_only else error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(CheckpointError, match=sentence):
            get_pretrained_model("owner/model", revision="v9", cache_dir=tmp_path)

    def offline(*_: Any, **__: Any) -> str:
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="not in the local cache, and offline mode is on; unset HF_HUB_OFFLINE"):
        get_pretrained_model("owner/model", cache_dir=tmp_path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="neither a folder here nor a name of the form 'owner/model'"):
        get_pretrained_model("not a name/of/a model", cache_dir=tmp_path)
