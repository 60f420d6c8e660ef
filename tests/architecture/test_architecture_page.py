"""docs/architecture.md says what is: its table of floors, its walks and its seams are compared with the code."""

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.small_models import SmallModel, small_model

import stable_audio_tools
from stable_audio_tools.core.config import load, save

sys.path.insert(0, str(Path(__file__).parent))
from walks import Walk, walk

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
ROOT = Path(stable_audio_tools.__file__).parent
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}


def stations(section: str) -> list[str]:
    """The steps of a walk, `file:function`, from the figure of a section."""
    return re.findall(r"^ +(\S+\.py:\w+)", SECTIONS[section], flags=re.MULTILINE)


def check(section: str, taken: Walk) -> None:
    places = [taken.steps.index(station) if station in taken.steps else -1 for station in stations(section)]
    missing = [station for station, place in zip(stations(section), places) if place < 0]
    assert not missing, f"no longer on the way: {missing}"
    assert places == sorted(places), "the figure has another order than the calls"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model("tiny_diffusion_cond", tmp_path_factory.mktemp("model"))


def test_the_table_of_floors_is_the_rule_of_the_import_test() -> None:
    tree = ast.parse((Path(__file__).parent / "test_imports.py").read_text())
    rule = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    assert isinstance(rule, ast.Dict)
    allowed = {}
    for key, value in zip(rule.keys, rule.values):
        assert isinstance(key, ast.Constant)
        allowed[key.value] = set() if isinstance(value, ast.Call) else ast.literal_eval(value)
    for row in re.findall(r"^\| (`.*?) \| (.*?) \|$", SECTIONS["Floors"], flags=re.MULTILINE):
        folders, below = (re.findall(r"`(\w+)`", cell) for cell in row)
        for folder in folders:
            assert allowed.pop(folder) == set(below), folder
    assert set(allowed) == {"cli", "utils"}, "folders that the table leaves out"


def test_a_prompt_takes_the_way_of_the_figure(small: SmallModel, tmp_path: Path) -> None:
    from stable_audio_tools.cli.generate import main

    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("first: {sound: bass, seconds_total: 1}\n")
    arguments = ["--model-config", small.config, "--ckpt-path", small.weights, "--cond-yaml-path", prompts]
    arguments += ["--sample-steps", 2, "--device", "cpu", "--output-dir", tmp_path / "out"]
    check("A prompt through generation", walk(lambda: main([str(argument) for argument in arguments])))


def test_a_batch_takes_the_way_of_the_figure(
    small: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_audio_tools.cli.train import main

    monkeypatch.chdir(tmp_path)
    config = load(small.config)
    config["training"].pop("demo", None)
    save(config, tmp_path / "model.json")
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 0.1, (config["sample_size"], 2))
        soundfile.write(clips / f"{number}.wav", noise, config["sample_rate"])
        (clips / f"{number}.json").write_text(json.dumps({"sound": "bass", "seconds_total": 1}))
    save({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(clips)}]}, tmp_path / "data.json")
    arguments = "--model-config model.json --dataset-config data.json --save-dir runs --max-steps 1 --batch-size 2"
    taken = walk(lambda: main([*arguments.split(), "--num-workers", "0", "--accelerator", "cpu"]))
    check("A batch through training", taken)


def test_the_seams_exist() -> None:
    rows = re.findall(r"^\| .*? \| `(\S+\.py)`: `(\w+)` \| (.*?) \|$", SECTIONS["Where parts meet"], flags=re.MULTILINE)
    assert len(rows) >= 6
    for file, name, members in rows:
        module = ast.parse((ROOT / file).read_text())
        (seam,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
        text = ast.unparse(seam) + "".join(ast.unparse(node) for node in module.body if name != seam.name)
        for member in re.findall(r"`(\w+)`", members):
            assert re.search(rf"\b{member}\b", text), f"{name} has no {member}"


def test_the_measure_of_walks_leaves_imports_out(tmp_path: Path) -> None:
    from stable_audio_tools.core.seeds import seed_everything

    assert walk(lambda: seed_everything(1)).files == ["core/seeds.py"]
