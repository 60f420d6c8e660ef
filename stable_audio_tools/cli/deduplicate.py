"""`deduplicate`: which files of a data set hold the same recording."""

import argparse
from typing import Any

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "dac_hist_dedup.py",
        "Find files that hold the same recording, also louder, inverted, resampled, encoded again, shifted or cut. "
        "Histograms of codec codes name candidates, a second look lays their frames over each other, and of each group "
        "of copies one file is kept. Writes a list that training leaves out, what is like what, and a page to listen "
        "to. A run that was killed goes on when started again. Under torchrun the processes share the listening. Exit "
        "status 1 when files of --against turn up in the data set.",
    )
    data = made.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dataset-config", metavar="JSON", help="dataset config (audio_dir); its path lists are not applied"
    )
    source.add_argument("--dataset-dir", nargs="+", default=(), metavar="DIR", help="folders of audio, instead")
    data.add_argument("--against", metavar="JSON|DIR", help="another split that must share no recording with this one")
    data.add_argument(
        "--extensions", default="aif,aiff,flac,m4a,mp3,ogg,opus,wav", metavar="LIST", help="kinds of files, by commas"
    )
    data.add_argument("--limit", type=int, metavar="N", help="look at the first N files only")
    data.add_argument(
        "--max-audio-seconds", type=float, default=120.0, metavar="S", help="listen to the start; 0: to the whole file"
    )
    _add_codec_flags(made)
    _add_comparison_flags(made)
    _add_output_flags(made)
    made.add_argument(
        "--num-workers", type=int, metavar="N", help="files to decode at once; one for each CPU if left out"
    )
    return made


def _add_codec_flags(made: argparse.ArgumentParser) -> None:
    codec = made.add_argument_group("codec")
    codec.add_argument(
        "--codec",
        choices=("dac", "autoencoder", "spectral"),
        default="dac",
        help="codes of the Descript Audio Codec, of an autoencoder of this toolkit, or without weights",
    )
    codec.add_argument("--model-type", choices=("44khz", "24khz", "16khz"), default="44khz", help="which DAC")
    codec.add_argument("--model-path", metavar="FILE", help="weights of the DAC; fetched if left out")
    codec.add_argument("--model-config", metavar="JSON", help="of the autoencoder, or of a model that holds one")
    codec.add_argument("--ckpt-path", metavar="FILE", help="its weights")
    codec.add_argument("--pretrained-name", metavar="NAME", help="a model on huggingface.co, or a folder, instead")
    codec.add_argument("--device", default="auto", help="where the codec runs: cpu, cuda, mps, or the best there is")
    codec.add_argument("--codebook-size", type=int, metavar="N", help="refuse a codec with another number of codes")


def _add_comparison_flags(made: argparse.ArgumentParser) -> None:
    likeness = made.add_argument_group("likeness")
    likeness.add_argument(
        "--similarity-threshold",
        type=float,
        metavar="COS",
        help="cosine from which a pair is a candidate; 0.9 for spectral and 0.95 for other codecs if left out",
    )
    likeness.add_argument(
        "--histogram-mode",
        choices=("per_codebook", "global"),
        default="per_codebook",
        help="a histogram for each codebook, or one for all",
    )
    likeness.add_argument(
        "--similarity-device", default="auto", help="where pairs are compared; the result is the same"
    )
    likeness.add_argument("--similarity-chunk-size", type=int, default=2048, metavar="N", help="files in a block")
    likeness.add_argument(
        "--second-look",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep candidates only whose frames agree at some offset, so that pieces of one style stay",
    )
    likeness.add_argument(
        "--aligned-threshold", type=float, default=0.6, metavar="R", help="correlation that the second look asks for"
    )
    likeness.add_argument(
        "--linkage",
        choices=("single", "complete"),
        default="single",
        help="groups by chains of copies, or such that every two are copies",
    )
    likeness.add_argument(
        "--keep",
        nargs="+",
        choices=("longest", "best-rate", "has-caption", "first"),
        default=["longest"],
        help="which file of a group stays; further rules decide ties, then the order of paths",
    )
    likeness.add_argument(
        "--sweep", nargs="+", type=float, default=(), metavar="COS", help="also tell what these thresholds would do"
    )


def _add_output_flags(made: argparse.ArgumentParser) -> None:
    output = made.add_argument_group("output")
    output.add_argument("--output-dir", default="outputs/dac_dedup", metavar="DIR", help="folder of everything written")
    for name, file in (
        ("exclude", "exclude_paths.txt"),
        ("pairs", "similar_pairs.jsonl"),
        ("failed", "failed_files.json"),
        ("summary", "summary.json"),
    ):
        output.add_argument(f"--{name}-output", metavar="FILE", help=f"instead of {file} in that folder")
    output.add_argument(
        "--features-dir", metavar="DIR", help="what was heard, for later runs; else features in that folder"
    )
    output.add_argument(
        "--exclude-path-format",
        choices=("qualified", "relative", "absolute"),
        default="qualified",
        help="entries as dataset:path, as path below the folder, or as whole path",
    )
    output.add_argument("--exclude-failed", action="store_true", help="leave files out that could not be heard, too")
    output.add_argument("--audit-groups", type=int, default=200, metavar="N", help="groups on the page to listen to")


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.dedup.codecs import CodecSettings
    from stable_audio_tools.dedup.run import deduplicate
    from stable_audio_tools.dedup.settings import DedupSettings

    check(arguments)
    given = vars(arguments)
    codec = CodecSettings(**{name: given.pop(name) for name in CodecSettings.__dataclass_fields__})
    outcome = deduplicate(DedupSettings(codec=codec, **given))
    if outcome is None:
        return 0
    for row in outcome.sweep:
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items()))
    print(describe(outcome.summary))
    return 1 if outcome.leaks else 0


def describe(summary: dict[str, Any]) -> str:
    """What was found, in a few lines."""
    line = (
        f"{summary['encoded_files']} files: {summary['duplicate_files']} copies in {summary['clusters']} groups, "
        f"{summary['failed_files']} could not be heard\n"
        f"{summary['exclude_output']}: {summary['excluded_files']} files to leave out"
    )
    if summary["against"]:
        line += f"\n{summary['leaking_files']} files are in {summary['against']} too; see {summary['leaks_output']}"
    return line


def check(arguments: argparse.Namespace) -> None:
    """Numbers that cannot be right."""
    from stable_audio_tools.core.errors import ConfigError

    problems = [
        f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}"
        for name in ("limit", "num_workers", "similarity_chunk_size", "audit_groups")
        if (getattr(arguments, name) or 1) < 1 or getattr(arguments, name) == 0
    ]
    cosines = [
        ("similarity-threshold", arguments.similarity_threshold),
        ("aligned-threshold", arguments.aligned_threshold),
    ]
    cosines += [("sweep", value) for value in arguments.sweep]
    problems += [
        f"--{name}: expected a number from 0 to 1, got {value}"
        for name, value in cosines
        if value is not None and not 0 < value <= 1
    ]
    if problems:
        raise ConfigError(problems)


main = command(parser, run)
