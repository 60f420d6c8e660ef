"""An optional package is asked for where it is used."""

import json
import sys
from pathlib import Path

import pytest

from stable_audio_tools.core.errors import MissingPackage
from stable_audio_tools.core.packages import available, require


def test_a_present_package_is_returned() -> None:
    assert require("json") is json
    assert available("json")


def test_an_absent_package_names_its_extra() -> None:
    assert not available("no_such_package")
    with pytest.raises(MissingPackage, match=r"no-such-package is not installed.*pip install -e '\.\[clap\]'"):
        require("no_such_package", extra="clap")


def test_a_broken_package_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_broken.py").write_text("import another_missing_one\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(MissingPackage, match=r"installed but cannot be imported.*another_missing_one"):
        require("half_broken")
