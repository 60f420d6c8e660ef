"""`dtrak-score`: how much each training item made each query, from their features."""

import argparse

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "dtrak_score.py",
        "Score training items for queries and write the matrix, tables of the best items, and a page to listen to. "
        "Features that were made by other weights, parameters, seeds or timesteps than each other are refused.",
    )
    made.add_argument(
        "--train-feature-paths", nargs="+", required=True, metavar="FILE", help="features; shards of one set"
    )
    made.add_argument("--train-meta-paths", nargs="+", metavar="FILE", help="their meta data; else beside them")
    made.add_argument("--query-feature-path", required=True, metavar="FILE", help="features of the queries")
    made.add_argument("--query-meta-path", metavar="FILE", help="their meta data; else beside them")
    made.add_argument(
        "--output-score-path", required=True, metavar="FILE", help="matrix to write: queries x items, float32"
    )
    made.add_argument("--output-meta-path", metavar="FILE", help="where its meta data goes; else beside it")
    made.add_argument(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("TRAIN", "QUERY"),
        help="features by another checkpoint, seed or projection: scores are averaged (dot: summed, which is TracIn)",
    )
    method = made.add_argument_group("method")
    method.add_argument(
        "--method",
        default="ridge",
        choices=("ridge", "dot", "cosine", "similarity", "random"),
        help="ridge is TRAK or, with f mean-squared-l2-norm, D-TRAK; the others are baselines",
    )
    method.add_argument("--lambda-reg", type=float, default=1e-3, metavar="X", help="regulariser of ridge")
    method.add_argument(
        "--lambda-scale",
        default="auto",
        choices=("auto", "relative", "absolute"),
        help="relative: in units of the mean squared norm of a training feature; auto: that, but for files of the "
        "original scripts absolute",
    )
    method.add_argument(
        "--used-dim", type=int, metavar="N", help="numbers of a feature that are used; a sketch is folded"
    )
    method.add_argument("--negate", action="store_true", help="turn the sign")
    method.add_argument("--embedder", default="logmel", help="of similarity: clap, or logmel, which needs no weights")
    method.add_argument(
        "--embedding-cache", default="outputs/embeddings", metavar="DIR", help="where its vectors are kept"
    )
    method.add_argument("--seed", type=int, default=0, help="of random")
    method.add_argument("--device", default="cpu", help="cpu or cuda: where float64 is computed")
    method.add_argument(
        "--query-batch-size", type=int, default=256, metavar="N", help="queries that are scored at once"
    )
    tables = made.add_argument_group("tables")
    tables.add_argument("--report-dir", metavar="DIR", help="write top.csv, top.json and index.html there")
    tables.add_argument("--top-k", type=int, default=20, metavar="N", help="items of a query in the tables")
    tables.add_argument(
        "--labels", metavar="TABLE", help="csv, tsv or jsonl with a path and an artist or tag for each file"
    )
    tables.add_argument("--label-column", default="artist", metavar="NAME", help="column to sum scores by")
    return made


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from stable_audio_tools.attribution.report import write_report
    from stable_audio_tools.attribution.results import read_tags, save_scores, sum_by_label, write_tables
    from stable_audio_tools.attribution.scoring_run import ScoreSettings, score
    from stable_audio_tools.core.errors import ConfigError

    if arguments.labels and not arguments.report_dir:
        raise ConfigError("--labels needs --report-dir, where its table goes")
    if arguments.top_k < 1:
        raise ConfigError(f"--top-k: expected at least 1, got {arguments.top_k}")
    names = ScoreSettings.__dataclass_fields__
    scores = score(ScoreSettings(**{name: getattr(arguments, name) for name in names}))
    meta = save_scores(scores, arguments.output_score_path, arguments.output_meta_path)
    print(f"wrote {arguments.output_score_path} ({len(scores.query_ids)} x {len(scores.train_ids)}) and {meta}")
    if arguments.report_dir:
        folder = Path(arguments.report_dir)
        write_tables(scores, folder, "top", arguments.top_k)
        write_report(scores, folder / "index.html")
        if arguments.labels:
            column = arguments.label_column
            summed = sum_by_label(scores, read_tags(arguments.labels, column, scores.train_ids))
            write_tables(summed, folder, f"by_{column}", arguments.top_k, of_files=False)
        print(f"open {folder / 'index.html'}")
    return 0


main = command(parser, run)
