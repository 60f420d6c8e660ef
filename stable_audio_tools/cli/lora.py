"""`lora`: describe, convert, merge and extract adapter files."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.command import HelpFormatter, command, make_parser
from stable_audio_tools.cli.lora_choice import lora_choice

if TYPE_CHECKING:
    import torch

_FORMATS = ("native", "loraw", "sa3", "comfyui")


def parser() -> argparse.ArgumentParser:
    made = make_parser("stable-audio-tools lora", "Describe, convert, merge and extract adapter files.")
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=help, description=help, allow_abbrev=False, formatter_class=HelpFormatter)

    info = add("info", "say what an adapter file is and holds")
    info.add_argument("files", type=Path, nargs="+", metavar="FILE", help="adapter file of any known format")

    convert = add("convert", "write an adapter file in the format of another program")
    convert.add_argument("source", type=Path, metavar="FILE", help="adapter file of any known format")
    convert.add_argument("target", type=Path, metavar="NEW", help="file to write, .safetensors or .ckpt")
    convert.add_argument("--to", choices=_FORMATS, default="native", help="sa3 is Stable Audio 3, loraw its forerunner")
    convert.add_argument("--alpha", type=float, help="alpha of a file that does not tell it (LoRAW's); else its rank")
    convert.add_argument("--model-config", type=Path, metavar="JSON", help="model to check names and shapes against")
    convert.add_argument("--half", action="store_true", help="write float16")

    merge = add("merge", "add adapters to the weights of their base model, and write a model that needs none")
    merge.add_argument("target", type=Path, metavar="NEW", help="model file to write, .safetensors or .ckpt")
    merge.add_argument("--ckpt-path", type=Path, required=True, metavar="CKPT", help="weights of the base model")
    merge.add_argument("--model-config", type=Path, metavar="JSON", help="its config; else the one inside the weights")
    merge.add_argument(
        "--lora",
        type=lora_choice,
        action="append",
        required=True,
        metavar="FILE[:STRENGTH]",
        help="adapter and how strongly it acts, 1 if not said; may be given several times",
    )
    merge.add_argument("--alpha", type=float, help="alpha of files that do not tell it (LoRAW's); else their rank")
    merge.add_argument("--half", action="store_true", help="write float16")

    extract = add("extract", "make an adapter of the difference between a model and its base")
    extract.add_argument("target", type=Path, metavar="NEW", help="adapter file to write, .safetensors or .ckpt")
    extract.add_argument("--base", type=Path, required=True, metavar="CKPT", help="weights of the base model")
    extract.add_argument("--tuned", type=Path, required=True, metavar="CKPT", help="weights of the tuned model")
    extract.add_argument("--model-config", type=Path, metavar="JSON", help="their config; else the one inside the base")
    extract.add_argument("--rank", type=int, default=16, help="width of the factors: higher is closer, and larger")
    extract.add_argument("--include", nargs="+", metavar="PATTERN", help="patterns of layers to compare; else all")
    extract.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help="patterns of layers to leave out")
    extract.add_argument("--half", action="store_true", help="write float16")
    return made


def run(arguments: argparse.Namespace) -> int:
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "info": _info,
        "convert": _convert,
        "merge": _merge,
        "extract": _extract,
    }
    actions[arguments.action](arguments)
    return 0


def _info(arguments: argparse.Namespace) -> None:
    from stable_audio_tools.models.lora import describe_lora

    print("\n\n".join(describe_lora(path) for path in arguments.files))


def _convert(arguments: argparse.Namespace) -> None:
    from stable_audio_tools.models.checkpoints import parameters_on_meta
    from stable_audio_tools.models.factory import create_model_from_config_path
    from stable_audio_tools.models.lora import convert_lora, read_lora, write_lora

    model = None
    if arguments.model_config is not None:
        with parameters_on_meta():
            model = create_model_from_config_path(arguments.model_config)
    lora = convert_lora(read_lora(arguments.source, arguments.alpha), arguments.to, model)
    write_lora(lora, arguments.target, _dtype(arguments))
    print(f"wrote {arguments.target}")


def _merge(arguments: argparse.Namespace) -> None:
    from stable_audio_tools.models.checkpoints import open_weights, save_weights
    from stable_audio_tools.models.lora import load_lora, merge_lora
    from stable_audio_tools.models.pretrained import load_model

    stored = open_weights(arguments.ckpt_path)
    config = _config(arguments, stored.model_config)
    model = load_model(config, stored, ema=None)
    for choice in arguments.lora:
        load_lora(model, choice.path, choice.strength, alpha=arguments.alpha)
    layers = merge_lora(model)
    origin = {"source": stored.name, "adapters": ", ".join(f"{c.path.name}:{c.strength:g}" for c in arguments.lora)}
    save_weights(model, arguments.target, model_config=config, provenance=origin, dtype=_dtype(arguments))
    print(f"wrote {arguments.target}: {len(arguments.lora)} adapters merged into {layers} layers")


def _extract(arguments: argparse.Namespace) -> None:
    from stable_audio_tools.models.checkpoints import open_weights
    from stable_audio_tools.models.lora import extract_lora, write_lora
    from stable_audio_tools.models.pretrained import load_model

    stored = open_weights(arguments.base)
    config = _config(arguments, stored.model_config)
    base, tuned = load_model(config, stored, ema=None), load_model(config, arguments.tuned, ema=None)
    found = extract_lora(base, tuned, arguments.rank, include=arguments.include, exclude=arguments.exclude)
    write_lora(found.lora, arguments.target, _dtype(arguments))
    print(
        f"wrote {arguments.target}: {len(found.lora.layers)} layers, {found.kept:.1%} of their change kept; "
        f"{found.unchanged} layers are the same in both"
    )
    if found.beyond:
        print(f"not in the adapter: {len(found.beyond)} other tensors that differ, such as {found.beyond[0]}")


def _config(arguments: argparse.Namespace, embedded: dict[str, Any] | None) -> dict[str, Any] | None:
    from stable_audio_tools.core.config import load

    return embedded if arguments.model_config is None else load(arguments.model_config)


def _dtype(arguments: argparse.Namespace) -> "torch.dtype | None":
    import torch

    return torch.float16 if arguments.half else None


main = command(parser, run)
