"""`reconstruct-audios`: a folder of audio through an autoencoder and back, and how close it came."""

import argparse
import json
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.generate import add_file_flags, add_model_flags, load_model, source_of

TABLES = ("metrics.csv", "metrics.svg")


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
    from stable_audio_tools.core.ranks import is_rank_zero
    from stable_audio_tools.evaluation.reconstruction.folder import (
        all_processes,
        check_launcher,
        find_sources,
        reconstruct_folder,
    )
    from stable_audio_tools.inference.batch.outputs import OutputFolder

    settings = _settings_of(arguments)
    check_launcher()
    source = source_of(arguments, default="")
    sources = find_sources(arguments.audio_dir, arguments.output_dir, arguments.format)
    output = OutputFolder(arguments.output_dir)
    for file in (*sources, *TABLES, "manifest.jsonl"):
        output.check_place(file)
    model = load_model(arguments, source)
    lines: dict[str, dict[str, Any]] = {}

    def tell(record: dict[str, Any], is_new: bool) -> None:
        lines[record["file"]] = record
        print(json.dumps({**record, "new": is_new}) if arguments.json else _line(output, record, is_new), flush=True)

    with all_processes() as gather:
        failed = reconstruct_folder(model, sources, arguments.audio_dir, output, settings, tell)
        shares = gather((lines, len(failed)))
        made = {file: record for share, _ in shares for file, record in share.items()}
        failures = sum(count for _, count in shares)
        if is_rank_zero():
            _summarise(arguments, [made[file] for file in sources if file in made], failures)
    return 1 if failures else 0


def _settings_of(arguments: argparse.Namespace) -> Any:
    from stable_audio_tools.evaluation.reconstruction.folder import ReconstructionSettings

    return ReconstructionSettings(
        frame_duration=arguments.frame_duration,
        overlap_rate=arguments.overlap_rate,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        format=arguments.format,
        bits=arguments.bits,
        overwrite=arguments.overwrite,
    )


def _line(output: Any, record: dict[str, Any], is_new: bool) -> str:
    measured = ", ".join(f"{name} {record[name]}" for name in ("si_sdr", "mrstft", "mel") if name in record)
    return f"{'made' if is_new else 'kept'} {output.path / record['file']}: {measured}"


def _summarise(arguments: argparse.Namespace, records: list[dict[str, Any]], failures: int) -> None:
    """Write the tables of all files, and print their means."""
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.evaluation.reconstruction.table import as_csv, as_svg, means

    table, picture = (arguments.output_dir / name for name in TABLES)
    write_text(table, as_csv(records))
    write_text(picture, as_svg(records))
    if arguments.json:
        print(json.dumps({"files": len(records), "failed": failures, "mean": means(records)}), flush=True)
        return
    told = ", ".join(f"{name} {value}" for name, value in means(records).items() if value is not None)
    print(f"mean over {len(records)} files: {told}; see {table}", flush=True)


main = command(parser, run)
