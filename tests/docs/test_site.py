"""The site builds, every page is on it, and MkDocs has nothing to complain of."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.docs_pages import PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an announcement, not about these pages
    result = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").as_posix() if page.is_relative_to(ROOT / "docs") else page.name
        name = "index.md" if name == "README.md" else name
        assert (site / name).with_suffix(".html").is_file(), name


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|rel="stylesheet" href)=["']?https?://""", text)
