"""Published weight files by name: downloaded through the cache and checked by their hash."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from stable_audio_tools.core.errors import CheckpointError, UserError

_CHUNK = 2**20


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on huggingface.co."""

    repository: str

    def offline_hint(self, name: str) -> str:
        return f"run `hf download {self.repository} {name}` where there is a network and copy the cache (HF_HOME)"

    def fetch(self, name: str) -> Path:
        from stable_audio_tools.models.pretrained import fetch_from_hub

        path = fetch_from_hub(self.repository, name)
        # The cache names the content of large files by its SHA-256.
        stored = path.resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", stored):
            require_hash(path, stored)
        return path


@dataclass(frozen=True)
class WebFile:
    """A file of a release, kept in the cache of torch.hub."""

    url: str
    hash_prefix: str  # of its SHA-256

    def offline_hint(self, name: str) -> str:
        return f"download {self.url} where there is a network and copy it to {self.place(name)}"

    def place(self, name: str) -> Path:
        from torch.hub import get_dir

        return Path(get_dir()) / "checkpoints" / name

    def fetch(self, name: str) -> Path:
        from torch.hub import download_url_to_file

        path = self.place(name)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(self.url, str(path), self.hash_prefix, progress=False)
        require_hash(path, self.hash_prefix)
        return path


_LAION = HubFile("lukewys/laion_clap")
PUBLISHED: dict[str, HubFile | WebFile] = {
    "630k-audioset-best.pt": _LAION,
    "630k-audioset-fusion-best.pt": _LAION,
    "630k-best.pt": _LAION,
    "630k-fusion-best.pt": _LAION,
    "music_audioset_epoch_15_esc_90.14.pt": _LAION,
    "music_speech_audioset_epoch_15_esc_89.98.pt": _LAION,
    "music_speech_epoch_15_esc_89.25.pt": _LAION,
    "vggish-10086976.pth": WebFile(
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth", "10086976"
    ),
}


def weight_file(checkpoint: str, key: str) -> str:
    """Return the path of a weight file: a file on this machine, or a published file by its name.

    `key` is the config key of the checkpoint, for messages.
    """
    if Path(checkpoint).is_file() or checkpoint not in PUBLISHED:
        return checkpoint
    source = PUBLISHED[checkpoint]
    try:
        return str(source.fetch(checkpoint))
    except (OSError, URLError, CheckpointError) as error:
        if isinstance(error, HashError):
            raise
        raise UserError(
            f"{key}: {checkpoint} is not on this machine and cannot be downloaded ({str(error).splitlines()[0]}). To "
            f"work offline, {source.offline_hint(checkpoint)}, or give the path of the file as {key}"
        ) from None


class HashError(CheckpointError):
    """A downloaded file with another content than the published one."""


def require_hash(path: Path, prefix: str) -> None:
    """Raise if the SHA-256 of a file does not start with `prefix`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    if not digest.hexdigest().startswith(prefix):
        raise HashError(
            f"{path}: its SHA-256 is {digest.hexdigest()[:16]}..., expected {prefix[:16]}; the file is damaged, delete "
            "it and run the command again"
        )
