"""Tiny models of the published kinds."""

import pytest
from support.small_clap import small_clap, write_checkpoint, write_folder


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_folder(small_clap(64), tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="session")
def clap_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(small_clap(64), tmp_path_factory.mktemp("laion"))
