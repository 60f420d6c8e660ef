"""The tables of docs/reference say what the signatures say."""

from pathlib import Path

import make_reference
import pytest

from stable_audio_tools.core.config.registry import Component, iterate_components, schema


def test_the_tables_are_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_reference.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("component", iterate_components(), ids=lambda c: f"{c.kind}-{c.tag}")
def test_every_key_of_every_component_is_described(component: Component) -> None:
    table = "\n".join(make_reference._component(component, {}))
    properties = schema(component.kind, component.tag).model_json_schema().get("properties", {})
    for key in properties if component.body is None else ():
        assert f"| `{key}` |" in table
    assert component.description, "no docstring"


def test_a_changed_default_makes_them_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make_reference, "FOLDER", tmp_path)
    assert make_reference.main([]) == 0 and make_reference.main(["--check"]) == 0
    page = tmp_path / "datasets.md"
    page.write_text(page.read_text().replace("`true`", "`false`", 1))
    assert make_reference.main(["--check"]) == 1
