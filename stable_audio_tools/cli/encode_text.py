"""`encode-text`: texts to a file of encodings, for the conditioner `precomputed`."""

import argparse
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "encode_text.py",
        "Encode texts once with T5 or CLAP, or take over a pickle of encodings, into a safetensors file that the "
        "conditioner 'precomputed' reads.",
    )
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--texts", type=Path, metavar="FILE", help=".txt (a text per line), or .csv or .jsonl with prompt and name"
    )
    source.add_argument("--from-pickle", type=Path, metavar="FILE", help="encodings by name, of an older toolkit")
    encoder = made.add_argument_group("encoder of --texts")
    encoder.add_argument("--t5", metavar="NAME", help="T5 model, by name on the Hub or folder (else t5-small)")
    encoder.add_argument("--clap-ckpt", metavar="FILE", help="LAION's CLAP weights, instead of T5")
    encoder.add_argument(
        "--clap-model", metavar="NAME", help="CLAP model of transformers, by name or folder, instead of T5"
    )
    encoder.add_argument(
        "--pooling", choices=("first", "mean", "none"), help="one vector per text, or all its tokens (else mean)"
    )
    encoder.add_argument("--max-length", type=int, metavar="N", help="longest text, in tokens of T5 (else 128)")
    encoder.add_argument("--batch-size", type=int, metavar="N", help="texts through the encoder at once (else 16)")
    encoder.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (else the best there is)")
    made.add_argument(
        "--names",
        choices=("whole", "name", "stem"),
        help="of --from-pickle: what to keep of names that are paths (else whole)",
    )
    return made


def check(arguments: argparse.Namespace) -> None:
    """Flags that are wrong, or do not go together."""
    from stable_audio_tools.core.errors import ConfigError

    encoder = ("t5", "clap_ckpt", "clap_model", "pooling", "max_length", "batch_size", "device")
    others, source = (encoder, "--from-pickle") if arguments.from_pickle is not None else (("names",), "--texts")
    problems = [
        f"--{name.replace('_', '-')}: has no meaning with {source}; leave it out"
        for name in others
        if getattr(arguments, name) is not None
    ]
    if arguments.output.suffix != ".safetensors":
        problems.append(f"--output: expected a name ending in .safetensors, got {arguments.output.name!r}")
    for name in ("batch_size", "max_length"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            problems.append(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if problems:
        raise ConfigError(problems)


def conditioner_of(arguments: argparse.Namespace) -> Any:
    """What encodes, from texts to a condition."""
    from stable_audio_tools.core.config import build
    from stable_audio_tools.core.devices import pick_device
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.models.conditioners.clap import LAION_WIDTHS, clap_widths
    from stable_audio_tools.models.conditioners.text import encoder_width

    named = [name for name in ("t5", "clap_ckpt", "clap_model") if getattr(arguments, name) is not None]
    if len(named) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in named)
        raise ConfigError(f"{flags}: give one encoder")
    if named and named[0] != "t5":
        tokens = arguments.pooling == "none"
        key = "clap_ckpt_path" if arguments.clap_ckpt else "clap_model_name"
        widths = LAION_WIDTHS if arguments.clap_ckpt else clap_widths(arguments.clap_model, "--clap-model")
        config = {
            key: getattr(arguments, named[0]),
            "use_text_features": tokens,
            "output_dim": widths[0 if tokens else 1],
        }
        node = {"type": "clap_text", "id": "prompt", "config": config}
    else:
        name = arguments.t5 or "t5-small"
        config = {"t5_model_name": name, "max_length": arguments.max_length or 128, "output_dim": encoder_width(name)}
        node = {"type": "t5", "id": "prompt", "config": config}
    conditioner = build("conditioner", node, "encoder").eval()
    return lambda texts: conditioner(texts, pick_device(arguments.device))


def run(arguments: argparse.Namespace) -> int:
    from safetensors.torch import save_file

    from stable_audio_tools.core.files import atomic_path
    from stable_audio_tools.latents.text import Pooling, encode_texts, read_pickled_encodings, read_texts

    check(arguments)
    if arguments.from_pickle is not None:
        encodings = read_pickled_encodings(arguments.from_pickle, arguments.names or "whole")
    else:
        texts = read_texts(arguments.texts)
        pooling: Pooling = arguments.pooling or "mean"
        encodings = encode_texts(conditioner_of(arguments), texts, pooling, arguments.batch_size or 16)
    with atomic_path(arguments.output) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in encodings.items()}, temporary)
    longest = max(len(tensor) if tensor.ndim == 2 else 1 for tensor in encodings.values())
    width = next(iter(encodings.values())).shape[-1]
    print(f"{arguments.output}: {len(encodings)} encodings, dim {width}, max_length {longest}")
    return 0


main = command(parser, run)
