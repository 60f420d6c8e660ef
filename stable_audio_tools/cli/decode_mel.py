"""`decode-mel`: a folder of mel spectrograms to audio."""

import argparse
import json
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.generate import add_file_flags

DEFAULT_MODEL = "bigvgan_v2_44khz_128band_256x"


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "decode_mel.py",
        "Make audio of every mel spectrogram (.pt, .npy, .safetensors) of a folder. For BigVGAN alone they hold "
        "natural logarithms, with --model-config what its mel transform makes, in [-1, 1]. What is complete is kept. "
        "Exit status 1 when a file could not be read. Several GPUs: torchrun --nproc_per_node N decode_mel.py ...",
    )
    made.add_argument("--directory", type=Path, required=True, metavar="DIR", help="folder of spectrograms")
    made.add_argument("--output-dir", type=Path, metavar="DIR", help="folder to write to (else DIR/audio)")
    made.add_argument(
        "--bigvgan-model",
        "--bigvgan_model",
        metavar="NAME",
        help="a published name, a weight file, or a folder with config.json (without --model-config, else "
        f"{DEFAULT_MODEL})",
    )
    made.add_argument("--bigvgan-config", metavar="JSON", help="its config.json, where that lies elsewhere")
    made.add_argument("--model-config", metavar="JSON", help="a model whose mel transform and vocoder are taken")
    made.add_argument("--chunk-frames", type=int, metavar="N", help="frames at once, for spectrograms of many minutes")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps, or the best there is")
    add_file_flags(made)
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.devices import pick_device
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.mel.decoding import DecodeSettings, check_details, decode_folder, find_mels

    check(arguments)
    folder = arguments.directory
    files = find_mels(folder, arguments.format)
    decoder, about = _decoder(arguments)
    check_details(decoder, folder, files)
    output = OutputFolder(arguments.output_dir or folder / "audio")
    settings = DecodeSettings(arguments.format, arguments.bits, arguments.overwrite, arguments.chunk_frames)

    def tell(record: dict[str, Any]) -> None:
        if arguments.json:
            print(json.dumps(record), flush=True)

    failed = decode_folder(decoder, about, folder, files, output, settings, pick_device(arguments.device), tell)
    output.write_manifest(list(files))
    if not arguments.json:
        print(f"{output.path}: {len(output.records(list(files)))} of {len(files)} decoded", flush=True)
    return 1 if failed else 0


def check(arguments: argparse.Namespace) -> None:
    """Flags that do not go together."""
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.mel.decoding import OVERLAP_FRAMES

    if arguments.bigvgan_model is not None and arguments.model_config is not None:
        raise ConfigError("give either --bigvgan-model, or --model-config with a vocoder")
    if arguments.bigvgan_config is not None and arguments.bigvgan_model is None:
        raise ConfigError("--bigvgan-config: goes with --bigvgan-model")
    if arguments.chunk_frames is not None and arguments.chunk_frames <= OVERLAP_FRAMES:
        raise ConfigError(f"--chunk-frames: expected more than {OVERLAP_FRAMES}, got {arguments.chunk_frames}")


def _decoder(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """(what decodes, what is told of it in the files)"""
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.mel.decoding import LogMelDecoder
    from stable_audio_tools.mel.pretransform import mel_node_of
    from stable_audio_tools.mel.vocoders import GriffinLimVocoder
    from stable_audio_tools.models.factory import create_pretransform_from_config

    if arguments.model_config is not None:
        node, rate = mel_node_of(arguments.model_config)
        made = create_pretransform_from_config(node, rate)
        if arguments.chunk_frames is not None and isinstance(made.vocoder, GriffinLimVocoder):
            raise ConfigError("--chunk-frames: Griffin-Lim finds the phases of a spectrogram as a whole; leave it out")
        return made, {"pretransform": node}
    source = arguments.bigvgan_model or DEFAULT_MODEL
    return LogMelDecoder(source, arguments.bigvgan_config), {"vocoder": source}


main = command(parser, run)
