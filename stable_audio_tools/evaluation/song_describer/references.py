"""The file of reference vectors: a row per caption, in the published `.npz` layout and with its embedder's identity."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.evaluation.embedders import Embedder, Frames, TextEmbedder, create_embedder
from stable_audio_tools.evaluation.results import Result, require_same_setup
from stable_audio_tools.evaluation.song_describer.captions import Caption

DEFAULT_CLAP = "laion/clap-htsat-fused"
COMMAND = "scripts/precompute_song_describer_clap_embeddings.py"
_REQUIRED = ("caption_ids", "track_ids", "durations", "prompts", "audio_paths", "audio_embeddings", "text_embeddings")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class References:
    """Rows in the order of the file; `identity` is None in files of older tools, which do not tell it."""

    caption_ids: NDArray[np.int64]
    track_ids: NDArray[np.int64]
    durations: NDArray[np.float32]
    prompts: tuple[str, ...]
    audio_embeddings: Frames  # (n, d)
    text_embeddings: Frames  # (n, d), or (n, 0) where the embedder takes no texts
    embedder: Mapping[str, Any]  # the node that builds it
    identity: Mapping[str, Any] | None
    digest: str

    @property
    def track_rows(self) -> NDArray[np.int64]:
        """The first row of each track: captions of one track must not count its audio twice."""
        _, first = np.unique(self.track_ids, return_index=True)
        return np.sort(first)

    def choose(self, count: int | None) -> list[int]:
        """Rows to judge by: one of each track first, then second captions, and so on; None is all."""
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


def clap_node(name: str) -> dict[str, Any]:
    """CLAP by a name or folder of transformers, or by a checkpoint of laion-clap."""
    return {"type": "clap", "config": {"checkpoint" if name.endswith(_CHECKPOINTS) else "name": name}}


def write_references(
    path: str | Path,
    captions: Sequence[Caption],
    audio: Frames,
    texts: Frames,
    embedder: Embedder,
    node: Mapping[str, Any],
) -> None:
    """Write the file whole or not at all; older tools read it too."""
    about = {"node": dict(node), "identity": identity_of(embedder)}
    target = Path(path)
    with atomic_path(target if target.suffix == ".npz" else target.with_name(f"{target.name}.npz")) as temporary:
        np.savez_compressed(
            temporary,
            clap_model_name=np.array([str(embedder.source or embedder.tag)]),
            clap_sample_rate=np.array([embedder.sample_rate], dtype=np.int32),
            caption_ids=np.array([c.caption_id for c in captions], dtype=np.int64),
            track_ids=np.array([c.track_id for c in captions], dtype=np.int64),
            durations=np.array([c.duration for c in captions], dtype=np.float32),
            prompts=np.array([c.prompt for c in captions], dtype=np.str_),
            audio_paths=np.array([str(c.audio) for c in captions], dtype=np.str_),
            audio_embeddings=audio.astype(np.float32),
            text_embeddings=texts.astype(np.float32),
            embedder=np.array([json.dumps(about, sort_keys=True)]),
        )


def read_references(path: str | Path) -> References:
    """A file of `write_references` or of the Jamendo fork."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            data = {key: stored[key] for key in stored.files}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path}: is no .npz file of plain arrays ({error})") from None
    missing = [key for key in _REQUIRED if key not in data]
    if missing:
        raise UserError(
            f"{path}: lacks {', '.join(missing)}; make it with precompute_song_describer_clap_embeddings.py"
        )
    count = len(data["prompts"])
    uneven = [key for key in _REQUIRED if len(data[key]) != count]
    audio, texts = (np.asarray(data[f"{kind}_embeddings"], np.float32) for kind in ("audio", "text"))
    if not count or uneven or not (np.isfinite(audio).all() and np.isfinite(texts).all()):
        raise UserError(f"{path}: is empty, or its rows do not fit together; make it again")
    name = str(data["clap_model_name"][0]) if "clap_model_name" in data else DEFAULT_CLAP
    about: dict[str, Any] = {"node": clap_node(name), "identity": None}
    if "embedder" in data:
        about = json.loads(str(data["embedder"][0]))
    digest = hashlib.blake2b(audio.tobytes() + texts.tobytes() + "\n".join(map(str, data["prompts"])).encode())
    return References(
        data["caption_ids"].astype(np.int64),
        data["track_ids"].astype(np.int64),
        data["durations"].astype(np.float32),
        tuple(map(str, data["prompts"])),
        audio,
        texts,
        about["node"],
        about["identity"],
        digest.hexdigest()[:12],
    )


def identity_of(embedder: Embedder) -> dict[str, Any]:
    """What decides the vectors of sounds and of texts."""
    texts = {"text_weights": embedder.text_weights} if isinstance(embedder, TextEmbedder) else {}
    return {**embedder.identity, **texts}


def matching_embedder(references: References, node: Mapping[str, Any] | None = None, device: Any = "cpu") -> Embedder:
    """The embedder that made the references, or the one asked for if it is the same."""
    made_by, asked = dict(references.embedder), dict(node or references.embedder)
    embedder = create_embedder(asked, device)
    if references.identity is None:
        if made_by != asked:
            raise UserError(f"the references were made by {_short(made_by)}, and {_short(asked)} was asked for")
        return embedder
    _require_same(references.identity, embedder.layout)  # before weights are loaded
    _require_same(references.identity, embedder.identity)
    return embedder


def _require_same(stored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    known = {key: value for key, value in stored.items() if key in found}
    require_same_setup([("the references", Result({}, known, {})), ("the embedder", Result({}, found, {}))])


def _short(node: Mapping[str, Any]) -> str:
    config = node.get("config", {})
    return f"{node['type']} {config.get('name') or config.get('checkpoint') or ''}".strip()
