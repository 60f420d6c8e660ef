"""`dtrak-merge`: one set of features from the shards that several processes wrote."""

import argparse

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "dtrak_merge.py",
        "Join FILE.shard-0-of-N, FILE.shard-1-of-N, ... to FILE. The result is what one process would have written.",
    )
    made.add_argument(
        "--feature-path", required=True, metavar="FILE", help="as it was given to dtrak_extract_features.py"
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.features import FeaturePaths, merge_shards

    paths = FeaturePaths.of(arguments.feature_path)
    print(f"{paths.feature}: joined from {merge_shards(paths)} shards")
    return 0


main = command(parser, run)
