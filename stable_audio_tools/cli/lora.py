"""`lora`: describe, convert, merge, combine and extract adapter files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class InfoSettings(Settings):
    """Settings of `lora info`."""

    files: tuple[Path, ...] = option(help="adapter file of any known format", positional=True, metavar="FILE")


def run_info(settings: InfoSettings) -> None:
    from stable_audio_tools.models.lora import describe_lora

    print("\n\n".join(describe_lora(path) for path in settings.files))


@dataclass(frozen=True, kw_only=True)
class HalfOption(Settings):
    """The precision of the written file."""

    half: bool = option(False, "write float16")

    @property
    def dtype(self) -> "torch.dtype | None":
        """The dtype to write; None keeps the dtype of each tensor."""
        import torch

        return torch.float16 if self.half else None


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(HalfOption):
    """Settings of `lora convert`."""

    source: Path = option(help="adapter file of any known format", positional=True, metavar="FILE")
    target: Path = option(help="file to write, .safetensors or .ckpt", positional=True, metavar="NEW")
    to: Literal["native", "loraw", "sa3", "comfyui"] = option(
        "native", "format to write; sa3 is that of Stable Audio 3, loraw that of LoRAW"
    )
    alpha: float | None = option(None, "alpha, for files without one such as LoRAW's (default: the rank)")
    model_config: Path | None = option(None, "config of the model, to check names and shapes", metavar="JSON")


def run_convert(settings: ConvertSettings) -> None:
    from stable_audio_tools.models.checkpoints import parameters_on_meta
    from stable_audio_tools.models.factory import create_model_from_config_path
    from stable_audio_tools.models.lora import convert_lora, read_lora, write_lora

    model = None
    if settings.model_config is not None:
        with parameters_on_meta():
            model = create_model_from_config_path(settings.model_config)
    lora = convert_lora(read_lora(settings.source, settings.alpha), settings.to, model)
    write_lora(lora, settings.target, settings.dtype)
    print(f"wrote {settings.target}")


@dataclass(frozen=True, kw_only=True)
class MergeLoraSettings(HalfOption):
    """Settings of `lora merge`."""

    target: Path = option(help="model file to write, .safetensors or .ckpt", positional=True, metavar="NEW")
    ckpt_path: Path = option(help="weights of the base model", metavar="CKPT")
    model_config: Path | None = option(
        None, "config of the base model (default: the one in the weights)", metavar="JSON"
    )
    lora: tuple[LoraChoice, ...] = option(
        help="adapter and its strength (default 1); may be repeated",
        metavar="FILE[:STRENGTH]",
        repeat=True,
        parse=lora_choice,
    )
    alpha: float | None = option(None, "alpha, for files without one such as LoRAW's (default: the rank)")


def run_merge(settings: MergeLoraSettings) -> None:
    from stable_audio_tools.models.checkpoints import open_weights, save_weights
    from stable_audio_tools.models.lora import load_lora, merge_lora
    from stable_audio_tools.models.pretrained import load_model

    stored = open_weights(settings.ckpt_path)
    config = _config(settings.model_config, stored.model_config)
    model = load_model(config, stored, ema=None)
    for choice in settings.lora:
        load_lora(model, choice.path, choice.strength, alpha=settings.alpha)
    layers = merge_lora(model)
    origin = {"source": stored.name, "adapters": ", ".join(f"{c.path.name}:{c.strength:g}" for c in settings.lora)}
    save_weights(model, settings.target, model_config=config, provenance=origin, dtype=settings.dtype)
    print(f"wrote {settings.target}: {len(settings.lora)} adapters merged into {layers} layers")


@dataclass(frozen=True, kw_only=True)
class CombineLoraSettings(HalfOption):
    """Settings of `lora combine`."""

    target: Path = option(help="adapter file to write, .safetensors or .ckpt", positional=True, metavar="NEW")
    lora: tuple[LoraChoice, ...] = option(
        help="adapter and its strength (default 1); to be given twice or more",
        metavar="FILE[:STRENGTH]",
        repeat=True,
        parse=lora_choice,
    )
    method: Literal["sum", "ties", "dare", "dare-ties"] = option(
        "sum", "sum of the changes, TIES, DARE, or DARE followed by the signs of TIES"
    )
    density: float | None = option(None, "share of entries that ties and dare keep (default: 0.2)", gt=0, le=1)
    rank: int | None = option(None, "rank of the result (default: the sum of the ranks)", ge=1)
    seed: int = option(0, "random seed of dare", ge=0)
    base: Path | None = option(None, "weights of the base model, for types other than lora, loha, lokr", metavar="CKPT")
    model_config: Path | None = option(
        None, "config of the base model (default: the one in the weights)", metavar="JSON"
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if len(self.lora) < 2:
            yield f"--lora: give at least two adapters, got {len(self.lora)}"
        if self.density is not None and self.method == "sum":
            yield "--density: has no meaning for --method sum; leave it out"
        if self.model_config is not None and self.base is None:
            yield "--model-config: goes with --base"


def run_combine(settings: CombineLoraSettings) -> None:
    from stable_audio_tools.models.checkpoints import open_weights
    from stable_audio_tools.models.lora import combine_loras, read_lora, write_lora
    from stable_audio_tools.models.pretrained import load_model

    base = None
    if settings.base is not None:
        stored = open_weights(settings.base)
        base = load_model(_config(settings.model_config, stored.model_config), stored, ema=None)
    combined = combine_loras(
        [(read_lora(choice.path), choice.strength) for choice in settings.lora],
        settings.method,
        density=settings.density,
        rank=settings.rank,
        seed=settings.seed,
        base=base,
    )
    write_lora(combined.lora, settings.target, settings.dtype)
    print(
        f"wrote {settings.target}: {len(combined.lora.layers)} layers from {len(settings.lora)} adapters, "
        f"{combined.kept:.1%} of the combined change kept"
    )


@dataclass(frozen=True, kw_only=True)
class ExtractLoraSettings(HalfOption):
    """Settings of `lora extract`."""

    target: Path = option(help="adapter file to write, .safetensors or .ckpt", positional=True, metavar="NEW")
    base: Path = option(help="weights of the base model", metavar="CKPT")
    tuned: Path = option(help="weights of the tuned model", metavar="CKPT")
    model_config: Path | None = option(
        None, "config of both models (default: the one in the base weights)", metavar="JSON"
    )
    rank: int = option(16, "rank of the factors; a higher rank is more exact and gives a larger file", ge=1)
    include: tuple[str, ...] | None = option(None, "patterns of layers to compare (default: all)", metavar="PATTERN")
    exclude: tuple[str, ...] = option((), "patterns of layers to leave out", metavar="PATTERN")


def run_extract(settings: ExtractLoraSettings) -> None:
    from stable_audio_tools.models.checkpoints import open_weights
    from stable_audio_tools.models.lora import extract_lora, write_lora
    from stable_audio_tools.models.pretrained import load_model

    stored = open_weights(settings.base)
    config = _config(settings.model_config, stored.model_config)
    base, tuned = load_model(config, stored, ema=None), load_model(config, settings.tuned, ema=None)
    found = extract_lora(base, tuned, settings.rank, include=settings.include, exclude=settings.exclude)
    write_lora(found.lora, settings.target, settings.dtype)
    print(
        f"wrote {settings.target}: {len(found.lora.layers)} layers, {found.kept:.1%} of their change kept; "
        f"{found.unchanged} layers are identical in both models"
    )
    if found.beyond:
        print(f"not in the adapter: {len(found.beyond)} other tensors that differ, such as {found.beyond[0]}")


def _config(path: Path | None, embedded: JsonObject | None) -> JsonObject | None:
    from stable_audio_tools.core.config import load

    return embedded if path is None else load(path)


info = Command(InfoSettings, run_info, "Describe an adapter file.")
convert = Command(ConvertSettings, run_convert, "Convert an adapter file to the format of another program.")
merge = Command(
    MergeLoraSettings,
    run_merge,
    "Merge adapters into the weights of their base model.",
)
combine = Command(CombineLoraSettings, run_combine, "Combine several adapters into one.")
extract = Command(
    ExtractLoraSettings, run_extract, "Extract an adapter from the difference between a tuned model and its base."
)
