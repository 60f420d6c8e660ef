"""`dtrak-validate`: do the scores predict what happens when models are trained on other subsets?"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stable_audio_tools.cli.command import make_parser, run_command


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "dtrak_validate.py",
        "The linear datamodeling score: make-subsets, train, measure, lds. The counterfactual check: make-removals, "
        "train, measure, counterfactual. All steps share one folder, and each goes on where it was stopped.",
    )
    steps = made.add_subparsers(dest="step", required=True, metavar="STEP")
    _add_plans(steps)
    _add_work(steps)
    _add_verdicts(steps)
    return made


def _add_plans(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    subsets = _step(steps, "make-subsets", "draw random subsets of the training items")
    subsets.add_argument("--ids", required=True, metavar="FILE", help="names of the items: .ids.txt of their features")
    subsets.add_argument("--num-subsets", type=int, default=64, metavar="N", help="models to be trained")
    subsets.add_argument("--fraction", type=float, default=0.5, metavar="X", help="share of the items in a subset")
    subsets.add_argument("--seed", type=int, default=0, help="of the draw")
    subsets.add_argument("--labels", metavar="TABLE", help="table of labels, of each of which the same share is drawn")
    subsets.add_argument("--label-column", default="artist", metavar="NAME", help="its column")
    removals = _step(steps, "make-removals", "lists without the best items of each query, and without others")
    removals.add_argument("--scores", required=True, metavar="FILE", help="matrix that dtrak_score.py wrote")
    removals.add_argument("--top-k", type=int, default=10, metavar="N", help="items to leave out")
    removals.add_argument("--seed", type=int, default=0, help="of the others")


def _add_work(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = _step(steps, "train", "train a model on each list; flags after -- go to train.py")
    train.add_argument(
        "--part", nargs=2, type=int, default=(0, 1), metavar=("I", "N"), help="each N-th list from the I-th"
    )
    train.add_argument("--keep-runs", action="store_true", help="keep run folders beside the weights")
    train.add_argument("flags", nargs=argparse.REMAINDER, help="-- and the flags of train.py")
    measure = _step(steps, "measure", "the output of every model for every query")
    measure.add_argument("--model-config", required=True, metavar="JSON", help="config of the models")
    measure.add_argument("--dataset-config", metavar="JSON", help="dataset of the queries")
    measure.add_argument("--generated", metavar="DIR", help="folder that generate.py wrote, instead")
    measure.add_argument("--max-examples", type=int, metavar="N", help="the first N queries only")
    measure.add_argument("--disable-random-crop", action="store_true", help="crop at the start of each file")
    encoded = measure.add_mutually_exclusive_group()
    encoded.add_argument("--pre-encoded", action="store_true", default=None, help="that dataset holds latents")
    encoded.add_argument(
        "--no-pre-encoded",
        action="store_false",
        dest="pre_encoded",
        help="it holds audio; else as the model config says",
    )
    measure.add_argument("--f", default="loss", help="what is measured")
    measure.add_argument("--K", type=int, default=50, metavar="N", help="timesteps that are averaged")
    measure.add_argument("--num-train-steps", type=int, default=1000, metavar="N", help="timesteps that there are")
    measure.add_argument("--seed", type=int, default=42, help="of what a dataset draws")
    measure.add_argument("--e-seeds", nargs="+", type=int, default=(0, 1, 2), metavar="N", help="seeds of the noise")
    measure.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps, or the best there is")


def _add_verdicts(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    lds = _step(steps, "lds", "the linear datamodeling score, and the regulariser that it chooses")
    lds.add_argument("--scores", nargs="*", default=(), metavar="FILE", help="matrices to compare")
    lds.add_argument(
        "--train-feature-paths", nargs="+", metavar="FILE", help="features: choose a regulariser for these"
    )
    lds.add_argument("--query-feature-path", metavar="FILE", help="features of the queries")
    lds.add_argument(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("TRAIN", "QUERY"),
        help="features by another checkpoint, seed or projection: scores are averaged",
    )
    lds.add_argument("--lambda-grid", nargs="+", type=float, metavar="X", help="regularisers to try")
    lds.add_argument(
        "--lambda-scale",
        default="auto",
        choices=("auto", "relative", "absolute"),
        help="of the regularisers, as dtrak_score.py takes it",
    )
    lds.add_argument("--used-dim", type=int, metavar="N", help="numbers of a feature that are used; a sketch is folded")
    lds.add_argument(
        "--f-not-loss",
        action="store_true",
        help="outputs that measure did not write grow with more of the right items; else its --f tells",
    )
    counterfactual = _step(steps, "counterfactual", "what leaving out the best items did, against others")
    counterfactual.add_argument(
        "--whole", metavar="FILE", help="outputs/*.csv of another model of all items; else that of whole.txt"
    )


def _step(
    steps: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str
) -> argparse.ArgumentParser:
    made = steps.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    made.add_argument("--folder", required=True, type=Path, metavar="DIR", help="lists, models and outputs")
    return made


def run(arguments: argparse.Namespace) -> int:
    steps = {
        "make-subsets": make_subsets,
        "make-removals": make_removals,
        "train": train,
        "measure": measure,
        "lds": lds,
        "counterfactual": counterfactual,
    }
    return steps[arguments.step](arguments)


def make_subsets(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.results import read_labels
    from stable_audio_tools.attribution.validation import make_plan, save_plan
    from stable_audio_tools.core.errors import ConfigError

    try:
        ids = Path(arguments.ids).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--ids {arguments.ids}: cannot be read ({error.strerror})") from None
    labels = read_labels(arguments.labels, arguments.label_column, ids) if arguments.labels else None
    plan = make_plan(ids, arguments.num_subsets, arguments.fraction, arguments.seed, labels)
    save_plan(plan, arguments.folder)
    print(f"{arguments.folder}: {len(plan.subsets)} subsets of {len(plan.subsets[0])} of {len(ids)} items")
    return 0


def make_removals(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.results import read_scores
    from stable_audio_tools.attribution.validation import save_removals

    scores = read_scores(arguments.scores)
    lists = save_removals(
        scores.values, scores.train_ids, scores.query_ids, arguments.folder, arguments.top_k, arguments.seed
    )
    print(f"{arguments.folder}: {len(lists)} lists for {len(scores.query_ids)} queries")
    return 0


def train(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.subset_training import train_subsets

    flags = arguments.flags[1:] if arguments.flags[:1] == ["--"] else arguments.flags
    count = train_subsets(arguments.folder, flags, tuple(arguments.part), arguments.keep_runs)
    print(f"{arguments.folder}: {count} models trained")
    return 0


def measure(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.measuring import MeasureSettings, measure_models

    options = {key: value for key, value in vars(arguments).items() if key not in ("step", "folder")}
    written = measure_models(MeasureSettings(**options), arguments.folder)
    print(f"{arguments.folder}/outputs: {len(written)} models measured")
    return 0


def lds(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.lds_run import compare, save_verdicts, tune
    from stable_audio_tools.attribution.scoring_run import ScoreSettings
    from stable_audio_tools.attribution.validation import is_loss

    tunes, f_is_loss = _has_features(arguments), is_loss(arguments.folder, arguments.f_not_loss)
    verdicts = compare(arguments.folder, arguments.scores, f_is_loss) if arguments.scores else []
    if tunes:
        names = ("train_feature_paths", "query_feature_path", "also", "lambda_scale", "used_dim")
        settings = ScoreSettings(**{name: getattr(arguments, name) for name in names})
        verdicts += tune(arguments.folder, settings, arguments.lambda_grid, f_is_loss)
    width = max(len(verdict.name) for verdict in verdicts)
    print(f"{'':{width}}  LDS [95 % interval]")
    for verdict in verdicts:
        print(f"{verdict.name:{width}}  {verdict.value}")
    save_verdicts(verdicts, arguments.folder)
    print(f"of each query: {arguments.folder / 'lds.csv'}")
    return 0


def _has_features(arguments: argparse.Namespace) -> bool:
    """Whether a regulariser is to be chosen; flags of it that stand alone are an error."""
    from stable_audio_tools.core.errors import ConfigError

    needed = {
        "--train-feature-paths": arguments.train_feature_paths,
        "--query-feature-path": arguments.query_feature_path,
    }
    optional = {
        "--also": arguments.also,
        "--lambda-grid": arguments.lambda_grid,
        "--lambda-scale": arguments.lambda_scale != "auto",
        "--used-dim": arguments.used_dim,
    }
    given = [flag for flag, value in {**needed, **optional}.items() if value]
    missing = [flag for flag, value in needed.items() if not value]
    if given and missing:
        raise ConfigError(f"{', '.join(given)}: choosing a regulariser needs {' and '.join(missing)} too")
    if not given and not arguments.scores:
        raise ConfigError("lds: give --scores, or --train-feature-paths and --query-feature-path")
    return bool(given)


def counterfactual(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.attribution.validation import compare_removals, is_loss, read_queries

    removals = compare_removals(arguments.folder, read_queries(arguments.folder), arguments.whole)
    print("rise of the output when left out:    named items   random items")
    for removal in removals:
        print(f"{Path(removal.query).name:36} {removal.named:12.5f} {removal.chance:14.5f}")
    sign = 1 if is_loss(arguments.folder) else -1
    better = sum(sign * removal.named > sign * removal.chance for removal in removals)
    print(f"leaving out the named items did more for {better} of {len(removals)} queries")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser, run, argv)
