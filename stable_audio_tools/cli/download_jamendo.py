"""`download-jamendo`: audio and tables of MTG-Jamendo."""

import argparse

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "download_mtg_jamendo.py",
        "Download tracks of MTG-Jamendo (full tracks in 320 kbit/s mp3, 508 GB in all) and unpack them. Everything is "
        "checked against the published SHA-256 sums. A run that was killed, or whose connection failed, goes on where "
        "it was when started again; a larger --target adds to what is there. The licence of each track is that of "
        "jamendo.com (Creative Commons, not all for commercial use).",
    )
    made.add_argument("--target", type=int, default=20_000, metavar="N", help="tracks to have in the end")
    made.add_argument(
        "--audio-dir", default="dataset/small-20000/audio", metavar="DIR", help="where tracks go, as NN/ID.mp3"
    )
    made.add_argument(
        "--mirror",
        default="freesound",
        metavar="NAME|URL",
        help="freesound, mtg, or the address that holds raw_30s/audio",
    )
    made.add_argument(
        "--with-metadata",
        action="store_true",
        help="fetch raw_30s.tsv and raw.meta.tsv to the folder above the tracks, too",
    )
    made.add_argument(
        "--split", metavar="NAME", help="only tracks of a published split, such as split-0/autotagging_genre-train"
    )
    made.add_argument("--workers", type=int, default=2, metavar="N", help="tars to fetch at once")
    made.add_argument(
        "--partial-tars",
        action="store_true",
        help="stop at exactly N tracks, and fetch the last tar only as far as needed; else tars are taken whole",
    )
    made.add_argument("--keep-tars", action="store_true", help="leave the tars in _tar_cache beside the tracks")
    made.add_argument("--retries", type=int, default=8, metavar="N", help="failures in a row before a tar is given up")
    made.add_argument("--timeout", type=float, default=60.0, metavar="S", help="silence that counts as a failure")
    made.add_argument(
        "--lists",
        default="https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data",
        metavar="URL|DIR",
        help="the data folder of the mtg-jamendo-dataset repository: sums, tables and splits",
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.core.progress import progress_bar
    from stable_audio_tools.data.jamendo.download import MIRRORS, DownloadSettings, download

    problems = [
        f"--{name}: expected at least {least}, got {getattr(arguments, name)}"
        for name, least in (("target", 1), ("workers", 1), ("retries", 0), ("timeout", 1))
        if getattr(arguments, name) < least
    ]
    if arguments.mirror not in MIRRORS and "://" not in arguments.mirror:
        problems.append(f"--mirror: expected {' or '.join(MIRRORS)} or an address, got {arguments.mirror!r}")
    if problems:
        raise ConfigError(problems)
    with progress_bar("downloading", 1.0) as show:
        done = download(DownloadSettings(**vars(arguments)), lambda got, total: show(got / total if total else 0))
    print(f"{arguments.audio_dir}: {done.fetched} tracks fetched from {done.tars} tars, {done.kept} were there")
    return 0


main = command(parser, run)
