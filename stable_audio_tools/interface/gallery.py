"""The stored runs of the app: audio, settings as JSON and spectrogram; each visitor sees only their own."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.data.pictures import spectrogram_image
from stable_audio_tools.inference.batch.outputs import OutputFolder
from stable_audio_tools.inference.generation.model import Generated, within_range

_TOKEN = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}-\d{2}")


@dataclass(frozen=True)
class Take:
    """One generated audio file with its picture and settings."""

    name: str
    audio: Path
    picture: Path
    settings: dict[str, Any]


def new_token() -> str:
    """Return a random identifier for a visitor."""
    return secrets.token_hex(16)


def owner_of(username: str | None, token: str | None, session: str | None) -> str:
    """Return the owner of a visitor's runs: the login, else the browser, else the session."""
    if username:
        return f"user-{hashlib.blake2b(username.encode(), digest_size=12).hexdigest()}"
    if token and _TOKEN.fullmatch(token):
        return f"browser-{token}"
    return f"session-{hashlib.blake2b((session or '').encode(), digest_size=12).hexdigest()}"


class Gallery:
    """The folder of all runs, with one folder per owner."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = OutputFolder(folder)

    def add(
        self, owner: str, generated: Generated, settings: Mapping[str, Any], keeps_level: bool = False
    ) -> list[Take]:
        """Write one file per item, with its seed among the settings.

        Audio that peaks above 1 is scaled down, or with `keeps_level` clipped at 1.
        """
        if not generated.audio.isfinite().all():
            raise ValueError("the model generated NaN or infinite samples, so no file was written; try other settings")
        base = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        level = (within_range(audio, keeps_level) for audio in generated.audio)
        return [
            self._write(owner, f"{base}-{number:02d}", audio, generated.sample_rate, {**settings, "seed": seed})
            for number, (audio, seed) in enumerate(zip(level, generated.seeds), start=1)
        ]

    def takes(self, owner: str, most: int = 60) -> list[Take]:
        """Return the newest takes of an owner, newest first."""
        paths = sorted(self.folder.target(owner).glob("*.json"), reverse=True)
        takes = (self.take(owner, path.stem) for path in paths[:most] if _NAME.fullmatch(path.stem))
        return [take for take in takes if take is not None]

    def take(self, owner: str, name: str) -> Take | None:
        """Return a take by its name; None if it does not exist or is incomplete."""
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is not the name of a run")
        paths = [self.folder.target(owner) / f"{name}{suffix}" for suffix in (".wav", ".png", ".json")]
        if not all(path.is_file() for path in paths):
            return None
        return Take(name, paths[0], paths[1], json.loads(paths[2].read_text(encoding="utf-8")))

    def _write(self, owner: str, name: str, audio: Tensor, rate: int, settings: dict[str, Any]) -> Take:
        file = f"{owner}/{name}"
        record = self.folder.write(f"{file}.wav", audio, rate, settings)
        with atomic_path(self.folder.target(f"{file}.png")) as temporary:
            picture: Image.Image = spectrogram_image(audio, rate)
            picture.save(temporary)
        # Written last: `takes` lists these files.
        settings = {"name": name, **{key: value for key, value in record.items() if key != "file"}}
        write_text(self.folder.target(f"{file}.json"), json.dumps(settings, indent=2, ensure_ascii=False))
        take = self.take(owner, name)
        assert take is not None, "the take was just written"
        return take
