"""`evaluate`: distances between sets of audio, scores on captioned tracks, reconstruction, comparison of results."""

import json
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.generate import request_field
from stable_audio_tools.cli.model_choice import ModelChoice
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.dedup.passages.settings import CopyCheck
from stable_audio_tools.evaluation.settings import (
    EmbedTracksSettings,
    ReconstructionSettings,
    ScoringSettings,
    SongDescriberSettings,
)
from stable_audio_tools.inference.generation.request import GenerationRequest

if TYPE_CHECKING:
    from stable_audio_tools.inference.batch.outputs import OutputFolder

TABLES = ("metrics.csv", "metrics.svg")


# ------------------------------------------------------------------ sets of audio


@dataclass(frozen=True, kw_only=True)
class FADSettings(ScoringSettings):
    """Settings of `evaluate fad`."""

    reference: tuple[str, ...] = option(
        help="folders of audio, or .npz files of statistics by fadtk or stable-audio-metrics",
        group="sets and embedders",
        metavar="SET",
        flags=("--reference-paths",),
    )
    generated: tuple[str, ...] = option(
        help="folders of audio to evaluate",
        group="sets and embedders",
        metavar="SET",
        flags=("--generated-paths", "--generated-path"),
    )
    embedder: tuple[str, ...] = option(
        ("logmel",),
        "logmel, mfcc, clap:name=FOLDER, vggish:checkpoint=FILE, MERT-v1-95M-7, ... or a JSON file; see "
        "docs/evaluation.md",
        group="sets and embedders",
        metavar="NAME",
        flags=("--model-names",),
    )
    metric: Literal["frechet_audio_distance"] = option(
        "frechet_audio_distance",
        "measured in every run; other flags add more metrics",
        group="sets and embedders",
    )
    output: Path = option(Path("outputs/fad"), "folder to write to", group="work", metavar="DIR", flags=("-o",))
    cache_dir: Path | None = option(
        None, "folder of cached vectors (default: OUTPUT/embeddings)", group="work", metavar="DIR"
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1, mps (default: the best available)", group="work", metavar="NAME"
    )
    log_dir: Path | None = option(None, "TensorBoard folder for the scores", group="work", metavar="DIR")
    log_step: int = option(0, "step of the scores in TensorBoard", group="work", metavar="N")


def run_fad(settings: FADSettings) -> int:
    from stable_audio_tools.core.devices import process_device
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.evaluation.report import (
        as_csv,
        as_html,
        log_to_tensorboard,
        names_of,
        rows_of,
        sentence,
        songs_csv,
    )
    from stable_audio_tools.evaluation.results import as_table, write_results
    from stable_audio_tools.evaluation.scoring import score_sets

    output = settings.output
    cache = settings.cache_dir or output / "embeddings"
    device = str(process_device(settings.device))
    scored = score_sets(settings.reference, settings.generated, settings.embedder, cache, settings, device)
    if scored is None:
        return 0  # another process is still working and will write the results
    results, comparisons = scored.results, scored.comparisons
    rows = rows_of(results)
    write_results(output / "scores.json", results, comparisons)
    write_text(output / "scores.csv", as_csv(rows))
    write_text(output / "index.html", as_html(results, comparisons))
    if comparisons:
        write_text(output / "significance.csv", as_csv([asdict(comparison) for comparison in comparisons]))
    names = names_of(rows)
    for name, result in zip(names, results):
        if "per_song" in result.details:
            write_text(output / "per_song" / f"{name}.csv", songs_csv(result))
    if settings.log_dir is not None:
        log_to_tensorboard(settings.log_dir, settings.log_step, dict(zip(names, rows)))
    print(as_table([{**row, **{key: Path(str(row[key])).name for key in ("reference", "generated")}} for row in rows]))
    for comparison in comparisons:
        print(sentence(comparison))
    print(f"wrote {output / 'scores.json'}, scores.csv and index.html", flush=True)
    return 1 if any(row["failed"] for row in rows) else 0


fad = Command(
    FADSettings,
    run_fad,
    "Measure the distance between generated and reference audio: the Fréchet audio distance for every reference set, "
    "generated set and embedder, and optional metrics. Writes scores.json, scores.csv and index.html. Vectors are "
    "cached, so a stopped run continues. Several GPUs or nodes: torchrun --nproc_per_node N evaluate_fad.py ...",
)


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Settings of `evaluate compare`."""

    results: tuple[Path, ...] = option(help="result files", positional=True, metavar="JSON")


def run_compare(settings: CompareSettings) -> None:
    from stable_audio_tools.evaluation.results import as_table, group_comparable, read_results

    read = [(path, result) for path in settings.results for result in read_results(path)]
    named = [(f"{path}: {result.subject['name']}", result) for path, result in read]
    tables = []
    for title, group in group_comparable(named).items():
        table = as_table([{"result": name, **result.scores} for name, result in group])
        tables.append(f"{title}\n{table}" if title else table)
    print("\n\n".join(tables))


compare = Command(
    CompareSettings,
    run_compare,
    "Print the scores of several result files (scores.json) side by side. Scores of different embedders, weights, "
    "windows, references or samplers are not comparable and are refused.",
)


# ------------------------------------------------------------------ a model

_GENERATION = (
    "steps", "cfg_scale", "sampler_type", "sigma_min", "sigma_max", "eta", "negative_prompt", "num_samples", "seconds",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation(ModelChoice, CopyCheck, ScoringSettings):
    """Settings of `evaluate model`; the settings of generation are added below."""

    prompts: Path = option(
        help="prompts: .yaml, .json, .csv or .jsonl, as for `generate`",
        group="sets and embedders",
        metavar="FILE",
        flags=("--cond-yaml-path",),
    )
    reference: tuple[str, ...] = option(
        help="folders of audio, or .npz files of statistics by fadtk or stable-audio-metrics",
        group="sets and embedders",
        metavar="SET",
    )
    earlier: tuple[Path, ...] = option(
        (),
        "output folders of earlier runs with the same prompts, to compare",
        group="sets and embedders",
        metavar="DIR",
    )
    embedder: tuple[str, ...] = option(
        ("logmel",), "embedders, as for `evaluate fad`", group="sets and embedders", metavar="NAME"
    )
    output: Path = option(help="folder to write to", group="work", metavar="DIR", flags=("-o",))
    cache_dir: Path | None = option(
        None, "folder of cached vectors (default: OUTPUT/embeddings)", group="work", metavar="DIR"
    )

    @property
    def request(self) -> GenerationRequest:
        """The request shared by all prompts."""
        return GenerationRequest(seed=self.seed, **{name: getattr(self, name) for name in _GENERATION})


ModelEvaluationSettings: type[ModelEvaluation] = make_dataclass(
    "ModelEvaluationSettings",
    [(name, *request_field(name)) for name in _GENERATION],
    bases=(ModelEvaluation,),
    frozen=True,
    kw_only=True,
)


def run_model(settings: ModelEvaluation) -> int:
    from stable_audio_tools.core.devices import process_device
    from stable_audio_tools.core.gathering import all_processes, check_launcher
    from stable_audio_tools.dedup.passages.guard import guard_of
    from stable_audio_tools.evaluation.model import AUDIO, score_model, write_page
    from stable_audio_tools.evaluation.report import rows_of, sentence
    from stable_audio_tools.evaluation.results import as_table
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.inference.batch.plan import plan_batch
    from stable_audio_tools.inference.batch.run import check_targets, run_batch

    check_launcher()
    model = settings.load()
    batches = plan_batch(settings.prompts, model.facts, settings.request, settings.batch_size)
    folder = OutputFolder(settings.output / AUDIO)
    check_targets(batches, folder)
    with all_processes() as gather:
        run_batch(model, batches, folder, inspection=guard_of(settings))
        del model  # its memory is the embedders'
        gather(None)  # embedding starts when all files are there
    found = score_model(
        settings.output,
        settings.reference,
        settings.earlier,
        settings.embedder,
        settings.cache_dir or settings.output / "embeddings",
        settings,
        str(process_device(settings.device)),
    )
    if found is None:
        return 0  # another process is still working and will write the page
    write_page(settings.output, found)
    rows = rows_of(found.scored.results)
    print(as_table([{**row, "generated": Path(str(row["generated"])).parent.name} for row in rows]))
    for comparison in found.scored.comparisons:
        print(sentence(comparison))
    print(f"wrote {settings.output / 'index.html'}, scores.json, scores.csv and prompts.csv", flush=True)
    return 1 if any(row["failed"] for row in rows) else 0


model = Command(
    ModelEvaluationSettings,
    run_model,
    "Generate audio for a set of prompts, score it against a reference set and earlier runs, and write one page with "
    "players, plots, intervals and settings. An interrupted run resumes. Several GPUs or nodes: torchrun "
    "--nproc_per_node N --no-python stable-audio-tools evaluate model ...",
)


# ------------------------------------------------------------------ captioned tracks


def run_embed_song_describer(settings: EmbedTracksSettings) -> int:
    from stable_audio_tools.evaluation.song_describer.references import embed_tracks

    done = embed_tracks(settings)
    if done is None:
        return 0  # another process is still working and will write the file
    print(f"{settings.output_path}: {done.captions} captions of {done.tracks} tracks, {done.left_out} tracks skipped")
    return 1 if done.left_out else 0


embed_song_describer = Command(
    EmbedTracksSettings,
    run_embed_song_describer,
    "Embed the tracks and captions of Song Describer once, as references for checkpoints. Each track is embedded once, "
    "even if it has several captions; a stopped run continues. Several GPUs or nodes: torchrun. Exit status 1 if "
    "tracks were skipped.",
)


def run_song_describer(settings: SongDescriberSettings) -> None:
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.evaluation.report import as_csv
    from stable_audio_tools.evaluation.results import as_table, write_results
    from stable_audio_tools.evaluation.song_describer.checkpoint import judge, prepare

    caption_run, subject = prepare(settings)
    rows = caption_run.references.choose(settings.limit)
    result = judge(caption_run, rows, subject, settings.output / "vectors")
    if result is None:
        return  # another process is still working and will write the results
    write_results(settings.output / "scores.json", [result])
    write_text(settings.output / "prompts.csv", as_csv(result.details["prompts"]))
    print(as_table([{"checkpoint": subject["name"], **result.scores}]))
    print(f"wrote {settings.output / 'scores.json'} and prompts.csv", flush=True)


song_describer = Command(
    SongDescriberSettings,
    run_song_describer,
    "Generate audio for the captions of Song Describer and score it: Fréchet and kernel distance to the tracks, "
    "agreement with the captions. Writes scores.json and prompts.csv. A stopped run keeps the generated audio. "
    "Several GPUs or nodes: torchrun --nproc_per_node N eval_song_describer_checkpoint_clap.py ...",
)


# ------------------------------------------------------------------ reconstruction


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings(ModelChoice, ReconstructionSettings):
    """Settings of `evaluate reconstruct`."""

    audio_dir: Path = option(help="folder of originals", metavar="DIR")
    output_dir: Path = option(help="folder to write to", metavar="DIR")
    json: bool = option(False, "print one line of JSON per file")


def run_reconstruct(settings: ReconstructSettings) -> int:
    from stable_audio_tools.core.gathering import all_processes, check_launcher
    from stable_audio_tools.core.ranks import is_rank_zero
    from stable_audio_tools.evaluation.reconstruction.folder import find_sources, reconstruct_folder
    from stable_audio_tools.inference.batch.outputs import OutputFolder

    check_launcher()
    sources = find_sources(settings.audio_dir, settings.output_dir, settings.format)
    output = OutputFolder(settings.output_dir)
    for file in (*sources, *TABLES, "manifest.jsonl"):
        output.check_place(file)
    model = settings.load()
    lines: dict[str, JsonObject] = {}

    def report(record: JsonObject, is_new: bool) -> None:
        lines[record["file"]] = record
        if settings.json:
            print(json.dumps({**record, "new": is_new}), flush=True)
        else:
            print(_line(output, record, is_new), flush=True)

    with all_processes() as gather:
        failed = reconstruct_folder(model, sources, settings.audio_dir, output, settings, report)
        shares = gather((lines, len(failed)))
        records = {file: record for share, _ in shares for file, record in share.items()}
        failures = sum(count for _, count in shares)
        if is_rank_zero():
            _summarise(settings, [records[file] for file in sources if file in records], failures)
    return 1 if failures else 0


def _line(output: "OutputFolder", record: JsonObject, is_new: bool) -> str:
    measured = ", ".join(f"{name} {record[name]}" for name in ("si_sdr", "mrstft", "mel") if name in record)
    return f"{'wrote' if is_new else 'kept'} {output.path / record['file']}: {measured}"


def _summarise(settings: ReconstructSettings, records: list[JsonObject], failures: int) -> None:
    """Write the table and the picture of all files, and print means and medians."""
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.evaluation.reconstruction.table import as_csv, as_svg, means, medians, silent_files

    table, picture = (settings.output_dir / name for name in TABLES)
    write_text(table, as_csv(records))
    write_text(picture, as_svg(records))
    if settings.json:
        averages = {"mean": means(records), "median": medians(records), "silent": silent_files(records)}
        print(json.dumps({"files": len(records), "failed": failures, **averages}), flush=True)
        return
    silent = silent_files(records)
    if silent:
        print(f"silent originals, not in the averages: {', '.join(silent)}", flush=True)
    middle = medians(records)
    values = {name: value for name, value in means(records).items() if value is not None}
    summary = ", ".join(f"{name} {value} (median {middle[name]})" for name, value in values.items())
    print(f"mean over {len(records) - len(silent)} files: {summary}; see {table}", flush=True)


reconstruct = Command(
    ReconstructSettings,
    run_reconstruct,
    "Encode and decode every audio file of a folder with an autoencoder, or with that inside a larger model, and "
    "measure the reconstruction: metrics.csv, metrics.svg. Finished files are kept. Exit status 1 if a file "
    "could not be read. Several GPUs or nodes: torchrun --nproc_per_node N reconstruct_audios.py ...",
)
