"""`attribute`: features and scores that link outputs to training items, and validation of both."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stable_audio_tools.attribution.settings import ExtractSettings, FeatureSets, MeasureSettings, ScoreSettings
from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option

if TYPE_CHECKING:
    from stable_audio_tools.attribution.extraction import Estimate


# ------------------------------------------------------------------ features


@dataclass(frozen=True)
class ExtractFlags(ExtractSettings):
    """Settings of `attribute extract`."""

    dry_run: bool = option(False, "print the estimated time, memory and disk space, and stop")


def run_extract(settings: ExtractFlags) -> None:
    from stable_audio_tools.attribution.extraction import Extraction

    extraction = Extraction(settings)
    if settings.dry_run:
        print(_describe_estimate(extraction.estimate()))
        return
    done = extraction.run()
    print(f"{done.paths.feature}: {done.computed} extracted, {done.kept} kept, {done.left_out} skipped", flush=True)


def _describe_estimate(estimate: "Estimate") -> str:
    seconds = estimate.seconds_per_item * estimate.items
    lines = [
        f"items        {estimate.items} ({estimate.left_out} skipped)",
        f"parameters   {estimate.parameters:,}",
        f"engine       {estimate.engine}",
        f"time         {estimate.seconds_per_item:.3f} s per item, {seconds / 60:.1f} min in total on one process",
        f"disk         {estimate.disk / 2**20:.1f} MiB",
    ]
    if estimate.peak_memory is not None:
        lines.append(f"memory       {estimate.peak_memory / 2**30:.2f} GiB peak, on the CPU")
    if estimate.peak_gpu is not None:
        lines.append(f"GPU memory   {estimate.peak_gpu / 2**30:.2f} GiB peak")
    return "\n".join(lines)


extract = Command(
    ExtractFlags,
    run_extract,
    "Write the projected gradient of every item: once for the training set, and once for the query files. Finished "
    "items are kept, so a stopped run continues when started again. Under torchrun each process writes a shard; "
    "dtrak_merge.py joins them.",
)


@dataclass(frozen=True)
class MergeSettings(Settings):
    """Settings of `attribute merge`."""

    feature_path: str = option(help="the --feature-path of dtrak_extract_features.py", metavar="FILE")


def run_merge(settings: MergeSettings) -> None:
    from stable_audio_tools.attribution.features import FeaturePaths, merge_shards

    paths = FeaturePaths.of(settings.feature_path)
    print(f"{paths.feature}: joined from {merge_shards(paths)} shards")


merge = Command(
    MergeSettings,
    run_merge,
    "Join FILE.shard-0-of-N, FILE.shard-1-of-N, ... to FILE, with the same result as one process.",
)


# ------------------------------------------------------------------ scores


@dataclass(frozen=True, kw_only=True)
class ScoreFlags(ScoreSettings):
    """Settings of `attribute score`."""

    output_score_path: str = option(help="matrix to write: queries x items, float32", metavar="FILE")
    output_meta_path: str | None = option(None, "file for its metadata (default: next to the matrix)", metavar="FILE")
    report_dir: str | None = option(None, "folder for top.csv, top.json and index.html", group="tables", metavar="DIR")
    top_k: int = option(20, "number of items listed per query", group="tables", metavar="N", ge=1)
    labels: str | None = option(
        None,
        "csv, tsv or jsonl with the path and the label (such as the artist) of each file",
        group="tables",
        metavar="TABLE",
    )
    label_column: str = option("artist", "column to sum scores by", group="tables", metavar="NAME")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.labels and not self.report_dir:
            yield "--labels: needs --report-dir, the folder for its table"


def run_score(settings: ScoreFlags) -> None:
    from stable_audio_tools.attribution.report import write_report
    from stable_audio_tools.attribution.results import read_tags, save_scores, sum_by_label, write_tables
    from stable_audio_tools.attribution.scoring_run import score as compute

    scores = compute(settings)
    meta = save_scores(scores, settings.output_score_path, settings.output_meta_path)
    print(f"wrote {settings.output_score_path} ({len(scores.query_ids)} x {len(scores.train_ids)}) and {meta}")
    if settings.report_dir:
        folder = Path(settings.report_dir)
        write_tables(scores, folder, "top", settings.top_k)
        write_report(scores, folder / "index.html")
        if settings.labels:
            column = settings.label_column
            summed = sum_by_label(scores, read_tags(settings.labels, column, scores.train_ids))
            write_tables(summed, folder, f"by_{column}", settings.top_k, of_files=False)
        print(f"open {folder / 'index.html'}")


score = Command(
    ScoreFlags,
    run_score,
    "Score training items for queries and write the matrix, tables of the best items, and a page with audio. "
    "Features from different weights, parameters, seeds or timesteps are refused.",
)


# ------------------------------------------------------------------ validation
#
# The linear datamodeling score: make-subsets, train, measure, lds. The counterfactual check: make-removals, train,
# measure, counterfactual. All steps share one folder, and each continues after an interruption.


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """Settings shared by all steps of the validation."""

    folder: Path = option(help="folder of lists, models and outputs", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class SubsetSettings(StepSettings):
    """Settings of `make-subsets`."""

    ids: str = option(help="item names: the .ids.txt of their features", metavar="FILE")
    num_subsets: int = option(64, "number of models to train", metavar="N")
    fraction: float = option(0.5, "fraction of the items in each subset", metavar="X", gt=0, lt=1)
    seed: int = option(0, "random seed")
    train_seeds: tuple[int, ...] = option(
        (), "training seeds: one model per subset and seed (default: one model, with the seed of train.py)", metavar="N"
    )
    labels: str | None = option(None, "table of labels; draw the same fraction of each label", metavar="TABLE")
    label_column: str = option("artist", "column of --labels", metavar="NAME")


def run_make_subsets(settings: SubsetSettings) -> None:
    from stable_audio_tools.attribution.results import read_labels
    from stable_audio_tools.attribution.validation import make_plan, save_plan
    from stable_audio_tools.core.errors import ConfigError

    try:
        ids = Path(settings.ids).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--ids {settings.ids}: cannot be read ({error.strerror})") from None
    labels = read_labels(settings.labels, settings.label_column, ids) if settings.labels else None
    plan = make_plan(ids, settings.num_subsets, settings.fraction, settings.seed, labels, settings.train_seeds)
    save_plan(plan, settings.folder)
    print(f"{settings.folder}: {len(plan.subsets)} subsets of {len(plan.subsets[0])} of {len(ids)} items")


@dataclass(frozen=True, kw_only=True)
class RemovalSettings(StepSettings):
    """Settings of `make-removals`."""

    scores: str = option(help="score matrix of dtrak_score.py", metavar="FILE")
    top_k: int = option(10, "number of items to remove per query", metavar="N")
    seed: int = option(0, "random seed of the control items")


def run_make_removals(settings: RemovalSettings) -> None:
    from stable_audio_tools.attribution.results import read_scores
    from stable_audio_tools.attribution.validation import save_removals

    scores = read_scores(settings.scores)
    lists = save_removals(
        scores.values, scores.train_ids, scores.query_ids, settings.folder, settings.top_k, settings.seed
    )
    print(f"{settings.folder}: {len(lists)} lists for {len(scores.query_ids)} queries")


@dataclass(frozen=True, kw_only=True)
class SubsetTrainingSettings(StepSettings):
    """Settings of `train`."""

    part: tuple[int, int] = option((0, 1), "train every N-th model, starting with model I", metavar=("I", "N"))
    keep_runs: bool = option(False, "keep the run folders next to the weights")
    adapters: bool = option(False, "train adapters by train_lora.py instead of whole models")
    flags: tuple[str, ...] = option((), "flags of train.py, or of train_lora.py", after_dashes=True)


def run_train(settings: SubsetTrainingSettings) -> None:
    from stable_audio_tools.attribution.subset_models import train_subsets

    count = train_subsets(settings.folder, settings.flags, settings.part, settings.keep_runs, settings.adapters)
    print(f"{settings.folder}: {count} models trained")


@dataclass(frozen=True, kw_only=True)
class MeasureFlags(StepSettings, MeasureSettings):
    """Settings of `measure`."""


def run_measure(settings: MeasureFlags) -> None:
    from stable_audio_tools.attribution.subset_models import measure_models

    written = measure_models(settings, settings.folder)
    print(f"{settings.folder}/outputs: {len(written)} models measured")


@dataclass(frozen=True, kw_only=True)
class LDSSettings(StepSettings, FeatureSets):
    """Settings of `lds`."""

    scores: tuple[str, ...] = option((), "score matrices to compare", metavar="FILE", may_be_empty=True)
    lambda_grid: tuple[float, ...] = option((), "regularisers to compare", metavar="X")
    f_not_loss: bool = option(
        False, "outputs not written by measure increase with helpful items (default: from the --f of measure)"
    )

    @property
    def chooses_regulariser(self) -> bool:
        """A regulariser is chosen, which needs features."""
        return bool(self.train_feature_paths)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        needed = {
            "--train-feature-paths": self.train_feature_paths,
            "--query-feature-path": self.query_feature_path,
        }
        optional = {
            "--train-meta-paths": self.train_meta_paths,
            "--query-meta-path": self.query_meta_path,
            "--also": self.also,
            "--lambda-grid": self.lambda_grid,
            "--lambda-scale": self.lambda_scale != "auto",
            "--used-dim": self.used_dim,
        }
        given = [flag for flag, value in {**needed, **optional}.items() if value]
        missing = [flag for flag, value in needed.items() if not value]
        if given and missing:
            yield f"{', '.join(given)}: choosing a regulariser also needs {' and '.join(missing)}"
        if not given and not self.scores:
            yield "lds: give --scores, or --train-feature-paths and --query-feature-path"


def run_lds(settings: LDSSettings) -> None:
    from stable_audio_tools.attribution.lds import compare, save_verdicts, tune
    from stable_audio_tools.attribution.validation import is_loss, read_plan

    f_is_loss = is_loss(settings.folder, settings.f_not_loss)
    verdicts = compare(settings.folder, settings.scores, f_is_loss) if settings.scores else []
    if settings.chooses_regulariser:
        verdicts += tune(settings.folder, settings, settings.lambda_grid, f_is_loss)
    width, seeds = max(len(verdict.name) for verdict in verdicts), len(read_plan(settings.folder).seeds)
    print(
        f"{'':{width}}  LDS [95 % interval over {'queries, subsets and seeds' if seeds > 1 else 'queries and subsets'}]"
    )
    for verdict in verdicts:
        print(f"{verdict.name:{width}}  {verdict.value}")
    save_verdicts(verdicts, settings.folder)
    print(f"per query: {settings.folder / 'lds.csv'}")


@dataclass(frozen=True, kw_only=True)
class CounterfactualSettings(StepSettings):
    """Settings of `counterfactual`."""

    whole: str | None = option(
        None, "outputs/*.csv of a model trained on all items (default: that of whole.txt)", metavar="FILE"
    )


def run_counterfactual(settings: CounterfactualSettings) -> None:
    from stable_audio_tools.attribution.validation import compare_removals, is_loss, read_queries

    removals = compare_removals(settings.folder, read_queries(settings.folder), settings.whole)
    print("change of the output on removal of:  named items   random items")
    for removal in removals:
        print(f"{Path(removal.query).name:36} {removal.named:12.5f} {removal.chance:14.5f}")
    sign = 1 if is_loss(settings.folder) else -1
    better = sum(sign * removal.named > sign * removal.chance for removal in removals)
    print(f"removing the named items had more effect for {better} of {len(removals)} queries")


make_subsets = Command(SubsetSettings, run_make_subsets, "Draw random subsets of the training items.")
make_removals = Command(
    RemovalSettings,
    run_make_removals,
    "Write lists that omit the best items of each query, and lists that omit random ones.",
)
train = Command(SubsetTrainingSettings, run_train, "Train a model on each list; flags after -- go to train.py.")
measure = Command(MeasureFlags, run_measure, "Measure the output of every model for every query.")
lds = Command(LDSSettings, run_lds, "Compute the linear datamodeling score and the best regulariser by it.")
counterfactual = Command(
    CounterfactualSettings, run_counterfactual, "Compare removing the best items with removing random ones."
)
