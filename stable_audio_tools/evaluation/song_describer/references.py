"""File of reference vectors: a row per caption, in the published `.npz` layout, with the windows and the embedder.

The published layout has one vector per caption. Files of this toolkit also contain the vectors of every window of a
track, because the mean of twelve windows is not comparable with the mean of five. Files of the Jamendo fork contain
whole-clip vectors of CLAP; generated audio is embedded the same way for them.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.core.devices import process_device
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.evaluation.embedders import Embedder, Frames, TextEmbedder, create_embedder, mean_vector
from stable_audio_tools.evaluation.embedders.base import Identity
from stable_audio_tools.evaluation.embedders.presets import Node, node_of
from stable_audio_tools.evaluation.embedding import embed_files
from stable_audio_tools.evaluation.results import Result, require_same_setup
from stable_audio_tools.evaluation.settings import EmbedTracksSettings
from stable_audio_tools.evaluation.song_describer.captions import (
    TRAINING_STYLE,
    Caption,
    in_training_style,
    read_captions,
)

logger = logging.getLogger(__name__)

DEFAULT_CLAP = "laion/clap-htsat-fused"
COMMAND = "scripts/precompute_song_describer_clap_embeddings.py"
_REQUIRED = ("caption_ids", "track_ids", "durations", "prompts", "audio_paths", "audio_embeddings", "text_embeddings")
_WINDOWS = ("window_track_ids", "window_counts", "window_embeddings")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class References:
    """Rows in the order of the file; `identity` is None in files of the Jamendo fork, which do not record it."""

    caption_ids: NDArray[np.int64]
    track_ids: NDArray[np.int64]
    durations: NDArray[np.float32]
    prompts: tuple[str, ...]
    audio_embeddings: Frames  # (n, d): one vector per caption, as published
    text_embeddings: Frames  # (n, d), or (n, 0) if the embedder takes no texts
    windows: tuple[Frames, ...]  # (w, d) of each track, in the order of `track_rows`
    embedder: Node  # builds the embedder
    identity: Mapping[str, object] | None
    digest: str

    @property
    def track_rows(self) -> NDArray[np.int64]:
        """First row of each track: the audio of a track with several captions counts once."""
        return _first_rows(self.track_ids)

    def choose(self, count: int | None) -> list[int]:
        """Choose rows to score: one of each track first, then second captions, and so on; None chooses all."""
        if count is not None and count < 1:
            raise UserError(f"at least 1 prompt is needed, got {count}")
        seen: Counter[int] = Counter()
        turns = []
        for track in self.track_ids.tolist():
            turns.append(seen[track])
            seen[track] += 1
        order = sorted(range(len(turns)), key=lambda row: (turns[row], row))
        return order[:count]

    @property
    def has_texts(self) -> bool:
        return self.text_embeddings.shape[1] > 0


def _first_rows(track_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(np.unique(track_ids, return_index=True)[1])


def clap_node(name: str) -> Node:
    """Return the node of CLAP by a name or folder of transformers, or by a checkpoint of laion-clap."""
    return {"type": "clap", "config": {"checkpoint" if name.endswith(_CHECKPOINTS) else "name": name}}


# ------------------------------------------------------------------ writing


class EmbeddedTracks(NamedTuple):
    """Counts of a written file of references."""

    captions: int
    tracks: int
    left_out: int  # tracks


def embed_tracks(settings: EmbedTracksSettings) -> EmbeddedTracks | None:
    """Embed tracks and captions and write the file; None in a process that finishes before the others."""
    captions, missing = read_captions(settings.csv_path, settings.audio_dir, settings.limit)
    if settings.prompt_source == "training_style":
        module = settings.custom_metadata_module or TRAINING_STYLE
        captions = in_training_style(captions, settings.prompt_seed, module)
    node = node_of(settings.embedder) if settings.embedder else clap_node(settings.clap_model_name)
    embedder = create_embedder(node, process_device(settings.device))
    cache = settings.cache_dir or settings.output_path.parent / "embeddings"
    tracks = {str(caption.audio): caption.audio for caption in captions}
    found = embed_files(embedder, tracks, cache, settings.audio_batch_size, settings.num_workers, "tracks")
    if found is None:
        return None
    usable = [caption for caption in captions if str(caption.audio) in found.frames]
    if not usable:
        raise UserError(f"{settings.audio_dir}: none of {len(tracks)} tracks could be embedded")
    texts: Frames = np.zeros((len(usable), 0), np.float32)
    if isinstance(embedder, TextEmbedder):
        texts = embedder.embed_texts([caption.prompt for caption in usable], settings.text_batch_size)
    windows = [found.frames[str(caption.audio)] for caption in usable]
    write_references(settings.output_path, usable, windows, texts, embedder, node)
    return EmbeddedTracks(len(usable), len(found.frames), len(missing) + len(found.failed))


def write_references(
    path: str | Path,
    captions: Sequence[Caption],
    windows: Sequence[Frames],
    texts: Frames,
    embedder: Embedder,
    node: Mapping[str, object],
) -> None:
    """Write the file completely or not at all; tools that know the published layout can read it.

    `windows` are the vectors (w, d) of the track of each caption.
    """
    origin = {"node": dict(node), "identity": identity_of(embedder)}
    track_ids = np.array([c.track_id for c in captions], dtype=np.int64)
    first = _first_rows(track_ids)
    target = Path(path)
    with atomic_path(target if target.suffix == ".npz" else target.with_name(f"{target.name}.npz")) as temporary:
        np.savez_compressed(
            temporary,
            clap_model_name=np.array([str(embedder.source or embedder.tag)]),
            clap_sample_rate=np.array([embedder.sample_rate], dtype=np.int32),
            caption_ids=np.array([c.caption_id for c in captions], dtype=np.int64),
            track_ids=track_ids,
            durations=np.array([c.duration for c in captions], dtype=np.float32),
            prompts=np.array([c.prompt for c in captions], dtype=np.str_),
            audio_paths=np.array([str(c.audio) for c in captions], dtype=np.str_),
            audio_embeddings=np.stack([mean_vector(one) for one in windows]).astype(np.float32),
            text_embeddings=texts.astype(np.float32),
            window_track_ids=track_ids[first],
            window_counts=np.array([len(windows[row]) for row in first], dtype=np.int64),
            window_embeddings=np.concatenate([windows[row] for row in first]).astype(np.float32),
            embedder=np.array([json.dumps(origin, sort_keys=True)]),
        )


# ------------------------------------------------------------------ reading


def read_references(path: str | Path) -> References:
    """Read a file of `write_references` or of the Jamendo fork."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            data = {key: stored[key] for key in stored.files}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path}: not an .npz file of plain arrays ({error})") from None
    missing = [key for key in _REQUIRED if key not in data]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; write it again with {COMMAND}")
    count = len(data["prompts"])
    uneven = [key for key in _REQUIRED if len(data[key]) != count]
    audio, texts = (np.asarray(data[f"{kind}_embeddings"], np.float32) for kind in ("audio", "text"))
    if not count or uneven or not (np.isfinite(audio).all() and np.isfinite(texts).all()):
        raise UserError(f"{path}: is empty, or its rows have different lengths or are not finite; write it again")
    track_ids = data["track_ids"].astype(np.int64)
    name = str(data["clap_model_name"][0]) if "clap_model_name" in data else DEFAULT_CLAP
    origin: dict[str, Any] = {"node": _whole_clips(clap_node(name)), "identity": None}
    if "embedder" in data:
        origin = json.loads(str(data["embedder"][0]))
        windows = _read_windows(path, data)
    else:
        windows = tuple(audio[row : row + 1] for row in _first_rows(track_ids))
        logger.info("%s: whole-clip vectors of the Jamendo fork; generated audio is embedded as whole clips, too", path)
    digest = hashlib.blake2b(
        audio.tobytes() + texts.tobytes() + "\n".join(map(str, data["prompts"])).encode()
    ).hexdigest()
    return References(
        data["caption_ids"].astype(np.int64),
        track_ids,
        data["durations"].astype(np.float32),
        tuple(map(str, data["prompts"])),
        audio,
        texts,
        windows,
        origin["node"],
        origin["identity"],
        digest[:12],
    )


def _read_windows(path: str | Path, data: Mapping[str, NDArray[Any]]) -> tuple[Frames, ...]:
    """Return the windows of each track, in the order of the tracks' first rows."""
    if any(key not in data for key in _WINDOWS):
        raise UserError(
            f"{path}: contains means of windows only, which are not comparable with clips of another length; write it "
            f"again with {COMMAND} (cached vectors are used)"
        )
    ends = np.cumsum(data["window_counts"])
    return tuple(np.split(np.asarray(data["window_embeddings"], np.float32), ends[:-1]))


def _whole_clips(node: Node) -> Node:
    return {**node, "config": {**node["config"], "clip": "whole"}}


def identity_of(embedder: Embedder) -> Identity:
    """Return everything that affects the vectors of sounds and of texts."""
    texts: Identity = {"text_weights": embedder.text_weights} if isinstance(embedder, TextEmbedder) else {}
    return {**embedder.identity, **texts}


def matching_embedder(
    references: References, node: Mapping[str, Any] | None = None, device: str | torch.device = "cpu"
) -> Embedder:
    """Build the embedder of the references; raise if `node` asks for a different one."""
    expected, asked = dict(references.embedder), dict(node or references.embedder)
    if references.identity is None:
        asked = _whole_clips(asked) if asked["type"] == "clap" else asked
        if expected != asked:
            raise UserError(f"the references were written by {_short(expected)}, and {_short(asked)} was asked for")
        return create_embedder(asked, device)
    embedder = create_embedder(asked, device)
    _require_same(references.identity, embedder.layout)  # before weights are loaded
    _require_same(references.identity, embedder.identity)
    return embedder


def _require_same(stored: Mapping[str, object], found: Mapping[str, object]) -> None:
    known = {key: value for key, value in stored.items() if key in found}
    require_same_setup([("the references", Result({}, known, {})), ("the embedder", Result({}, found, {}))])


def _short(node: Node) -> str:
    config = node.get("config", {})
    return f"{node['type']} {config.get('name') or config.get('checkpoint') or ''}".strip()
