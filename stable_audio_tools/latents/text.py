"""Encodings of texts by name, computed once for the conditioner `precomputed`."""

import csv
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from stable_audio_tools.core.config import build
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.latents.settings import EncodeTextSettings, Names, Pooling
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.conditioners.clap import LAION_WIDTHS, clap_widths
from stable_audio_tools.models.conditioners.text import encoder_width

_Reader = Callable[[str], Iterator[Mapping[str, Any]]]


def encode_to_file(settings: EncodeTextSettings) -> dict[str, Tensor]:
    """Write the encodings of the texts, or of the pickle, by their names, and return them."""
    if settings.from_pickle is not None:
        encodings = read_pickled_encodings(settings.from_pickle, settings.names or "whole")
    else:
        assert settings.texts is not None
        texts, encoder = read_texts(settings.texts), build_encoder(settings)
        encodings = encode_texts(encoder, texts, settings.pooling or "mean", settings.batch_size or 16)
    with atomic_path(settings.output) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in encodings.items()}, temporary)
    return encodings


def build_encoder(settings: EncodeTextSettings) -> Callable[[list[str]], Condition]:
    """Build the conditioner that the settings name, as a function from texts to conditions."""
    if settings.clap_ckpt is not None or settings.clap_model is not None:
        if settings.clap_ckpt is not None:
            source, widths = {"clap_ckpt_path": settings.clap_ckpt}, LAION_WIDTHS
        else:
            source = {"clap_model_name": str(settings.clap_model)}
            widths = clap_widths(str(settings.clap_model), "--clap-model")
        of_tokens = settings.pooling == "none"
        config = {**source, "use_text_features": of_tokens, "output_dim": widths[0 if of_tokens else 1]}
        node = {"type": "clap_text", "id": "prompt", "config": config}
    else:
        name = settings.t5 or "t5-small"
        config = {"t5_model_name": name, "max_length": settings.max_length or 128, "output_dim": encoder_width(name)}
        node = {"type": "t5", "id": "prompt", "config": config}
    conditioner = build("conditioner", node, "encoder").eval()
    return lambda texts: conditioner(texts, pick_device(settings.device))


def read_texts(path: str | Path) -> dict[str, str]:
    """Read texts by name; a text without a name is its own name."""
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    readers: dict[str, _Reader] = {".txt": _lines, ".csv": _rows, ".jsonl": _objects}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown format; the name must end in {', '.join(readers)}")
    texts: dict[str, str] = {}
    for number, row in enumerate(readers[path.suffix.lower()](content), start=1):
        text = row.get("prompt", row.get("text"))
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}: entry {number} has no prompt; name that column or key 'prompt'")
        name = str(row.get("name") or row.get("path") or text)
        if texts.setdefault(name, text) != text:
            raise UserError(f"{path}: entry {number}: {name!r} already has another text; names must differ")
    if not texts:
        raise UserError(f"{path}: holds no texts")
    return texts


def _lines(content: str) -> Iterator[Mapping[str, Any]]:
    yield from ({"prompt": line.strip()} for line in content.splitlines() if line.strip())


def _rows(content: str) -> Iterator[Mapping[str, Any]]:
    yield from csv.DictReader(io.StringIO(content, newline=""))


def _objects(content: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(filter(str.strip, content.split("\n")), start=1):
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"line {number} is not valid JSON ({error})") from None
        yield found if isinstance(found, Mapping) else {"prompt": found}


@torch.no_grad()
def encode_texts(
    conditioner: Callable[[list[str]], Condition], texts: Mapping[str, str], pooling: Pooling, batch_size: int = 16
) -> dict[str, Tensor]:
    """Encode texts; return a vector (d,) per name, or the tokens (s, d) without padding if pooling is none; float32."""
    different = list(dict.fromkeys(texts.values()))
    encoded: dict[str, Tensor] = {}
    with progress_bar("encoding", len(different)) as show:
        for start in range(0, len(different), batch_size):
            batch = different[start : start + batch_size]
            tokens, mask = conditioner(batch)
            for row, text in enumerate(batch):
                kept = tokens[row] if mask is None else tokens[row][mask[row].bool()]
                encoded[text] = _pooled(kept.float().cpu(), pooling)
            show(start + len(batch))
    return {name: encoded[text].clone() for name, text in texts.items()}


def _pooled(tokens: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "none":
        return tokens.contiguous()
    return tokens[0].clone() if pooling == "first" else tokens.mean(0)


# ------------------------------------------------------------------ pickles of older toolkits


def read_pickled_encodings(path: str | Path, names: Names = "whole") -> dict[str, Tensor]:
    """Read vectors (d,) or tokens (s, d) by name from a pickle of arrays or tensors by name, or of one array.

    Only constructors of arrays and tensors are called; a pickle that names anything else is refused unread.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file).load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can make the machine fail in any way
        raise UserError(f"{path}: not a whole pickle ({type(error).__name__})") from None
    items = content.items() if isinstance(content, Mapping) else enumerate(_sequence(path, content))
    found: dict[str, Tensor] = {}
    for key, value in items:
        name = _name(str(key), names)
        if name in found:
            raise UserError(f"{path}: {name!r} comes twice when only the {names} of the paths are kept")
        found[name] = _encoding(f"{path}: {key!r}", value)
    _check_together(path, found)
    return found


def _encoding(where: str, value: Any) -> Tensor:
    """Return an encoding (d,) or (s, d), without a leading axis of one."""
    try:
        encoding = torch.as_tensor(value).float()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{where} is {type(value).__name__}, not an array or tensor of numbers") from None
    shape = tuple(encoding.shape)
    encoding = encoding.squeeze(0) if encoding.ndim > 1 else encoding
    if encoding.ndim not in (1, 2) or not encoding.numel():
        raise UserError(f"{where} is shaped {shape}; expected a vector (width,) or tokens (tokens, width)")
    if not torch.isfinite(encoding).all():
        raise UserError(f"{where} holds NaN or infinite values; encode that text again")
    return encoding.clone()


def _check_together(path: Path, found: Mapping[str, Tensor]) -> None:
    """Raise if the encodings have different widths, because a conditioner takes one width."""
    if not found:
        raise UserError(f"{path}: holds no encodings; give a pickle of arrays by name")
    first, width = next((name, encoding.shape[-1]) for name, encoding in found.items())
    for name, encoding in found.items():
        if encoding.shape[-1] != width:
            raise UserError(
                f"{path}: {name!r} is {encoding.shape[-1]} wide, and {first!r} {width}; keep those of one encoder"
            )


def _sequence(path: Path, content: Any) -> Any:
    if isinstance(content, np.ndarray | Tensor | list | tuple):
        return content
    raise UserError(f"{path}: holds {type(content).__name__}; expected arrays by name, or an array of them")


def _name(key: str, names: Names) -> str:
    last = key.replace("\\", "/").rsplit("/", 1)[-1]
    return {"whole": key, "name": last, "stem": last.rsplit(".", 1)[0]}[names]


def _load_storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows dictionaries, arrays of numpy and tensors of torch."""

    def find_class(self, module: str, name: str) -> Any:
        import torch._utils

        if module == "torch.storage" and name == "_load_from_bytes":
            return _load_storage
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        }
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return super().find_class(module, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return super().find_class(module, name)
        if (module, name) not in known:
            raise pickle.UnpicklingError(
                f"refused, and nothing in it was run: it names {module}.{name}, which encodings do not need and which "
                "could be code"
            )
        return known[module, name]
