"""The README's quick start is the demo, step by step; the files around it are sound."""

import re
from pathlib import Path

import demo
import demo_figures
import pytest
import yaml
from support import docs_commands as commands
from support.docs_pages import ROOT, blocks_of

from stable_audio_tools.core.config import load
from stable_audio_tools.version import __version__

CONFIGS = ROOT / "stable_audio_tools" / "configs" / "model_configs"


def test_the_readme_shows_the_commands_of_the_demo() -> None:
    shown = [c.shown for b in blocks_of(ROOT / "README.md") for c in commands.commands_in(b.text)]
    arguments = demo.parser().parse_args([])
    steps = demo.plan(arguments.vae_steps, arguments.dit_steps)
    planned = [commands.commands_in(step.command)[0].shown for step in steps]
    start = shown.index(planned[0])
    assert shown[start : start + len(planned)] == planned


def test_the_transformer_of_the_example_works_on_its_autoencoder() -> None:
    vae, dit = (load(ROOT / "example" / "models" / f"{name}.json") for name in ("vae", "dit"))
    assert dit["model"]["pretransform"]["config"] == vae["model"]
    assert dit["model"]["io_channels"] == vae["model"]["latent_dim"]
    shipped = load(CONFIGS / "txt2audio" / "tiny_diffusion_cond.json")
    assert dit["model"]["conditioning"] == shipped["model"]["conditioning"]
    assert dit["training"] == {**shipped["training"], "pre_encoded": True}


def test_the_demo_fails_when_a_figure_misses_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    good = demo_figures.Figure("loss", "2", "1", "loss 2, then 1", met=True)
    assert demo.judge([good]) == 0
    assert demo.judge([good, good._replace(met=False)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "BAD loss 2, then 1"


def test_spectra_of_one_sound_are_near_and_of_two_are_far(tmp_path: Path) -> None:
    import torch

    from stable_audio_tools.data import audio_io

    time = torch.arange(22050) / 22050
    paths = [tmp_path / f"{index}.wav" for index in range(3)]
    for path, (frequency, level) in zip(paths, ((200, 0.5), (200, 0.05), (2000, 0.5))):
        audio_io.write(path, level * torch.sin(2 * torch.pi * frequency * time)[None].expand(2, -1), 22050)
    low, quiet, high = map(demo_figures.spectrum, paths)
    assert demo_figures.distance(low, quiet) < 3 < 10 < demo_figures.distance(low, high)


def test_the_badges_are_true() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    badge = {name: (ROOT / "docs" / "pictures" / f"{name}.svg").read_text() for name in ("python", "types", "licence")}
    versions = [tuple(map(int, found)) for found in re.findall(r"Python :: (3)\.(\d+)", project)]
    first, last = (".".join(map(str, version)) for version in (min(versions), max(versions)))
    assert f"python: {first} to {last}" in badge["python"] and f'requires-python = ">={first}"' in project
    assert "types: mypy" in badge["types"] and "disallow_untyped_defs = true" in project
    assert "licence: MIT" in badge["licence"] and (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_citation_names_this_version() -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(about)
    assert (about["version"], about["license"]) == (__version__, "MIT")


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_sound(form: Path) -> None:
    about = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert about["blank_issues_enabled"] is True
        return
    assert about["name"] and about["description"]
    assert len({field["id"] for field in about["body"]}) == len(about["body"])
    assert all(field["attributes"]["label"] for field in about["body"])
