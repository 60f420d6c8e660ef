"""`reconstruct-audios`: a folder of audio through an autoencoder and back, and how close it came."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.generate import add_file_flags, add_model_flags, load_model, source_of

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "reconstruct_audios.py",
        "Pass every audio file of a folder through an autoencoder (or that of a larger model), and measure how close "
        "it comes: metrics.csv, metrics.svg. What is complete is kept. Exit status 1 when a file could not be read. "
        "Several GPUs or nodes: torchrun --nproc_per_node N reconstruct_audios.py ...",
    )
    made.add_argument("--audio-dir", type=Path, required=True, metavar="DIR", help="folder of originals")
    made.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder to write to")
    add_model_flags(made, default="")
    made.add_argument("--frame-duration", type=float, default=1.0, metavar="SECONDS", help="length of a frame")
    made.add_argument(
        "--overlap-rate", type=float, default=0.01, metavar="X", help="share of a frame that is cross-faded"
    )
    made.add_argument("--batch-size", type=int, default=20, metavar="N", help="frames through the network at once")
    made.add_argument("--seed", type=int, default=0, help="of the noise that some bottlenecks add")
    add_file_flags(made)
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.inference.folder_reconstruction import (
        ReconstructionSettings,
        find_sources,
        reconstruct_folder,
    )
    from stable_audio_tools.inference.metric_table import as_csv, as_svg, means
    from stable_audio_tools.inference.outputs import OutputFolder
    from stable_audio_tools.system.files import write_text

    settings = ReconstructionSettings(
        frame_duration=arguments.frame_duration,
        overlap_rate=arguments.overlap_rate,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        format=arguments.format,
        bits=arguments.bits,
        overwrite=arguments.overwrite,
    )
    sources = find_sources(arguments.audio_dir, arguments.output_dir, arguments.format)
    model = load_model(arguments, source_of(arguments, default=""))
    output = OutputFolder(arguments.output_dir)

    def tell(record: dict[str, Any]) -> None:
        if arguments.json:
            print(json.dumps(record), flush=True)
        else:
            measured = ", ".join(f"{name} {record[name]}" for name in ("si_sdr", "mrstft", "mel") if name in record)
            print(f"{arguments.output_dir / record['file']}: {measured}", flush=True)

    def write(records: list[dict[str, Any]]) -> None:
        write_text(arguments.output_dir / "metrics.csv", as_csv(records))
        write_text(arguments.output_dir / "metrics.svg", as_svg(records))

    failed = reconstruct_folder(model, sources, arguments.audio_dir, output, settings, tell)
    records = output.summarise(list(sources), write)
    summary = {"files": len(records), "failed": len(failed), "mean": means(records)}
    if arguments.json:
        print(json.dumps(summary), flush=True)
    else:
        told = ", ".join(f"{name} {value}" for name, value in means(records).items() if value is not None)
        print(f"mean over {len(records)} files: {told}; see {arguments.output_dir / 'metrics.csv'}", flush=True)
    return 1 if failed else 0


main = command(parser, run)
