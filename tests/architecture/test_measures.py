"""The structure of the package stays within the ceilings of `measures.py`, and the measures find what they look for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import measures


@pytest.mark.parametrize("name", measures.MEASURES)
def test_the_package_stays_within_its_ceilings(name: str) -> None:
    value = measures.MEASURES[name]()
    assert value <= measures.CEILINGS[name], f"{name}: {value} is more than {measures.CEILINGS[name]}"


@pytest.fixture
def clear_caches() -> Iterator[None]:
    yield
    measures.files.cache_clear()
    measures.trees.cache_clear()


def measure_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **sources: str) -> None:
    for name, text in sources.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(measures, "PACKAGE", tmp_path)
    measures.files.cache_clear()
    measures.trees.cache_clear()


@pytest.mark.usefixtures("clear_caches")
def test_each_measure_counts_what_it_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measure_sources(
        monkeypatch,
        tmp_path,
        first="""
from typing import Any, TYPE_CHECKING
if TYPE_CHECKING:
    from stable_audio_tools.second import Same
class Same:
    sigma_min: float
def _once(x: Any) -> bool:
    return x == "v" or isinstance(x, DDPM) or x in ("rectified_flow", "other")
print(_once(1))
""",
        second="""
import stable_audio_tools.first
class Same: pass
def draw(sigma_min): parser.add_argument("--sigma-min")
control = Control("sigma_min", 1)
""",
    )
    assert len(measures.sigma_min_declarations()) == 4
    assert measures.circles() == [["first.py", "second.py"]]
    assert len(measures.objective_branches()) == 3
    assert len(measures.add_argument_calls()) == 1
    assert len(measures.any_annotations()) == 1
    assert [place.text for place in measures.small_helpers()] == ["_once"]
    assert measures.repeated_class_names() == {"Same": ["first.py", "second.py"]}
