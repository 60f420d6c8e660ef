"""Table of Song Describer: captions of tracks and the paths of their audio."""

import csv
import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools import configs
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data.custom_metadata import CustomMetadata, call_custom
from stable_audio_tools.data.faults import BadItem

logger = logging.getLogger(__name__)

PromptSource = Literal["caption", "training_style"]
TRAINING_STYLE = Path(configs.__path__[0]) / "dataset_configs" / "custom_metadata" / "custom_md_fma.py"
_COLUMNS = ("caption_id", "track_id", "path", "caption")


@dataclass(frozen=True)
class Caption:
    """Caption of a track of `duration` seconds (0: unknown)."""

    caption_id: int
    track_id: int
    prompt: str
    duration: float
    audio: Path


def read_captions(
    table: str | Path, audio_dir: str | Path, limit: int | None = None
) -> tuple[list[Caption], dict[str, str]]:
    """Read the rows in order, and the tracks without audio with the reason."""
    found: list[Caption] = []
    missing: dict[str, str] = {}
    for number, row in _rows(Path(table)):
        if limit is not None and len(found) >= limit:
            break
        try:
            caption_id, track = int(row["caption_id"]), int(row["track_id"])
            duration = float(row.get("duration") or 0)
        except (ValueError, TypeError) as error:  # None if the line ends early
            raise UserError(f"{table}: line {number}: {error}") from None
        places = list(_places(Path(audio_dir), row["path"], track))
        audio = next((place for place in places if place.is_file()), None)
        if audio is None:
            missing[str(track)] = f"no audio; looked for {', '.join(map(str, places))}"
        else:
            found.append(Caption(caption_id, track, row["caption"], duration, audio))
    for track_name, reason in missing.items():
        logger.warning("track %s: skipped (%s)", track_name, reason)
    if not found:
        raise UserError(f"{table}: no row has audio below {audio_dir}")
    return found, missing


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise UserError(f"{table}: has no column {', '.join(absent)}; expected {', '.join(_COLUMNS)}, duration")
            yield from enumerate(reader, 2)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: cannot be read as a table ({error})") from None


def _places(root: Path, path: str, track: int) -> Iterator[Path]:
    """Yield possible paths of a track: as in the table, or as MTG-Jamendo names whole and two-minute files."""
    if path:
        yield root / path
    for name in (f"{track}.2min.mp3", f"{track}.mp3"):
        yield root / f"{track % 100:02d}" / name


def in_training_style(captions: list[Caption], seed: int, module: Path = TRAINING_STYLE) -> list[Caption]:
    """Replace prompts by the output of a metadata module, which depends on the track and the seed alone."""
    write = CustomMetadata(module)
    prompts: dict[int, str] = {}
    for caption in captions:
        if caption.track_id not in prompts:
            prompts[caption.track_id] = _prompt_of(write, caption, seed)
    return [Caption(c.caption_id, c.track_id, prompts[c.track_id], c.duration, c.audio) for c in captions]


def _prompt_of(write: CustomMetadata, caption: Caption, seed: int) -> str:
    info = {"path": str(caption.audio), "relpath": f"{caption.audio.parent.name}/{caption.audio.name}"}
    state = random.getstate()
    random.seed(seed + caption.track_id)
    try:
        added: Mapping[str, object] = call_custom(write, info, None)
    except BadItem as error:
        raise UserError(f"{caption.audio}: {error}") from error
    finally:
        random.setstate(state)
    prompt = str(added.get("prompt", "")).strip()
    if not prompt:
        raise UserError(f"{caption.audio}: {write.path} gives no prompt for it; use --prompt-source caption")
    return prompt
