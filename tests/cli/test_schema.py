"""The schemas that editors use agree with the engine: every shipped config fits, a mistake does not."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import stable_audio_tools
from stable_audio_tools.cli.main import main

CONFIGS = sorted((Path(stable_audio_tools.__file__).parent / "configs").rglob("*.json"))
MODELS = [path for path in CONFIGS if path.parts[-3] == "model_configs"]
DATASETS = [path for path in CONFIGS if path.parts[-2] == "dataset_configs"]


@pytest.fixture(scope="module")
def validators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("schemas")
    assert main(["schema", "--out", str(folder)]) == 0
    made = {}
    for name in ("model", "dataset"):
        schema = json.loads((folder / f"{name}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        made[name] = jsonschema.Draft202012Validator(schema)
    return made


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_shipped_model_configs_fit(path: Path, validators: dict[str, Any]) -> None:
    validators["model"].validate(json.loads(path.read_text()) | {"$schema": "model.schema.json"})


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_shipped_dataset_configs_fit(path: Path, validators: dict[str, Any]) -> None:
    validators["dataset"].validate(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "model_typ", "x"),
        (("model",), "latent_dimm", 4),
        (("model", "encoder"), "type", "ooblek"),
        (("model", "encoder", "config"), "use_snakee", True),
        (("model", "encoder", "config"), "strides", [2, "4"]),
        (("training",), "learning_rat", 1e-4),
        (("training", "demo"), "demo_evry", 10),
        (("training", "demo"), "enabled", "yes"),
    ],
)
def test_mistakes_are_underlined(where: tuple[str, ...], key: str, value: Any, validators: dict[str, Any]) -> None:
    path = next(path for path in MODELS if path.stem == "tiny_autoencoder")
    config = node = json.loads(path.read_text())
    for step in where:
        node = node[step]
    node[key] = value
    assert list(validators["model"].iter_errors(config))
