"""`data` and `dedup`: check, download, write, encode and deduplicate datasets."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.settings import flags_from
from stable_audio_tools.core import ranks
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.data.settings import DownloadSettings
from stable_audio_tools.dedup.passages.settings import FindSettings, IndexSettings
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.latents.settings import EncodeTextSettings, PreEncodeSettings


@dataclass(frozen=True)
class CheckDataSettings(Settings):
    """Settings of `data check`."""

    dataset: Path = option(help="dataset config", positional=True, metavar="DATASET.json")
    against: Path | None = option(
        None,
        "dataset config of another split, such as validation, that must not share audio with this one",
        metavar="JSON",
    )
    model_config: Path | None = option(None, "report files with a lower sample rate than this model", metavar="JSON")
    quarantine: Path | None = option(None, "write a list of unusable files, for the dataset config", metavar="FILE")
    num_workers: int | None = option(None, "files to decode at once (default: number of CPUs)", metavar="N", ge=1)
    json: bool = option(False, "print the report as JSON")


def run_check(settings: CheckDataSettings) -> int:
    from stable_audio_tools.core.config import load
    from stable_audio_tools.core.progress import progress_bar
    from stable_audio_tools.data.checks import check_dataset, table
    from stable_audio_tools.data.dataset import load_dataset_config

    rate = load(settings.model_config).get("sample_rate") if settings.model_config else None
    with progress_bar("decoding", None) as show:
        report = check_dataset(
            load_dataset_config(settings.dataset),
            against=load_dataset_config(settings.against) if settings.against else None,
            sample_rate=rate,
            workers=settings.num_workers,
            progress=show,
        )
    print(json.dumps(report.as_dict(), indent=2) if settings.json else table(report))
    if settings.quarantine is not None:
        count = report.write_quarantine(settings.quarantine)
        if not settings.json:
            print(f"wrote {settings.quarantine}: {count} files; name it as quarantine_file in the dataset config")
    return 0 if report.ok else 1


check = Command(
    CheckDataSettings,
    run_check,
    "Decode every file of a dataset and report problems: unreadable, silent, clipped or short files, unusual sample "
    "rates and channels, missing captions, exact duplicates. Exit status 1 if there are any.",
)


# ------------------------------------------------------------------ example, download


@dataclass(frozen=True)
class ExampleSettings(Settings):
    """Settings of `data example`."""

    folder: Path = option(Path("example/clips"), "folder to write to", positional=True, metavar="folder")
    per_class: int = option(6, "number of clips per kind of sound", metavar="N", ge=1)
    seed: int = option(0, "random seed", metavar="SEED", ge=0)


def run_example(settings: ExampleSettings) -> int:
    from stable_audio_tools.data.example_clips import write_example_clips

    paths = write_example_clips(settings.folder, settings.per_class, settings.seed)
    print(f"wrote {len(paths)} clips to {settings.folder}")
    return 0


example = Command(
    ExampleSettings,
    run_example,
    "Write short synthetic clips of drums, bass, chords, rain and bells, each with a caption file (.json), and a table "
    "of all clips (metadata.jsonl). The same arguments give the same files.",
)


def run_download(settings: DownloadSettings) -> None:
    from stable_audio_tools.core.progress import progress_bar
    from stable_audio_tools.data.jamendo.download import download as fetch

    with progress_bar("downloading", 1.0) as show:
        done = fetch(settings, lambda got, total: show(got / total if total else 0))
    print(f"{settings.audio_dir}: {done.fetched} tracks fetched from {done.tars} tars, {done.existing} already present")


download = Command(
    DownloadSettings,
    run_download,
    "Download tracks of MTG-Jamendo (full tracks in 320 kbit/s mp3, 508 GB in all) and unpack them. All files "
    "are checked against the published SHA-256 sums. A stopped run continues when started again; a larger --target "
    "adds tracks. Each track has its licence on jamendo.com (Creative Commons, not all for commercial use).",
)


# ------------------------------------------------------------------ latents and encodings


def run_encode(settings: PreEncodeSettings) -> int:
    from stable_audio_tools.latents.encoding import encode_dataset

    processes = _count_processes(settings)
    if processes > 1 or (settings.num_nodes > 1 and "WORLD_SIZE" not in os.environ):
        return launch(flags_from(settings), processes, settings.num_nodes)
    done = encode_dataset(settings)
    print(f"{settings.output_path}: {done.encoded} encoded, {done.kept} kept, {done.left_out} skipped", flush=True)
    return 0


def _count_processes(settings: PreEncodeSettings) -> int:
    """Return the number of processes to start on this machine; 1 under a launcher."""
    import torch

    launched = ranks.launch().by != "none"
    if launched or settings.strategy == "single" or settings.device not in ("auto", "cuda"):
        return 1
    return max(1, torch.cuda.device_count())


def launch(flags: Sequence[str], processes: int, nodes: int) -> int:
    """Start this command in one process per GPU and return the highest exit status."""
    first = int(os.environ.get("NODE_RANK", 0)) * processes
    children = []
    for local in range(processes):
        place = {"RANK": first + local, "LOCAL_RANK": local, "WORLD_SIZE": processes * nodes}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}}
        words = [sys.executable, "-m", "stable_audio_tools", "data", "encode", *flags]
        children.append(subprocess.Popen(words, env=environment))
    try:
        return max(abs(child.wait()) for child in children)
    finally:
        for child in children:
            child.terminate()


encode = Command(
    PreEncodeSettings,
    run_encode,
    "Encode every item of a dataset once, so that training reads latents and runs no autoencoder. Finished items are "
    "kept, so a stopped run continues when started again, also with a different number of processes. Uses all GPUs "
    "of the machine; on several nodes use torchrun, or --num-nodes with NODE_RANK set on each.",
)


def run_encode_text(settings: EncodeTextSettings) -> None:
    from stable_audio_tools.latents.text import encode_to_file

    encodings = encode_to_file(settings)
    longest = max(len(tensor) if tensor.ndim == 2 else 1 for tensor in encodings.values())
    width = next(iter(encodings.values())).shape[-1]
    print(f"{settings.output}: {len(encodings)} encodings, dim {width}, max_length {longest}")


encode_text = Command(
    EncodeTextSettings,
    run_encode_text,
    "Encode texts once with T5 or CLAP, or convert a pickle of encodings, into a safetensors file for the conditioner "
    "'precomputed'.",
)


# ------------------------------------------------------------------ duplicates


def run_dedup(settings: DedupSettings) -> int:
    from stable_audio_tools.dedup.run import deduplicate

    outcome = deduplicate(settings)
    if outcome is None:
        return 0
    for row in outcome.sweep:
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items()))
    summary = outcome.summary
    print(
        f"{summary['encoded_files']} files: {summary['duplicate_files']} copies in {summary['clusters']} groups, "
        f"{summary['failed_files']} could not be analysed\n"
        f"{summary['exclude_output']}: {summary['excluded_files']} files to exclude"
    )
    if summary["against"]:
        print(f"{summary['leaking_files']} files are also in {summary['against']}; see {summary['leaks_output']}")
    return 1 if outcome.leaks else 0


dedup = Command(
    DedupSettings,
    run_dedup,
    "Find files that contain the same recording, also if it is louder, inverted, resampled, encoded again, shifted or "
    "cut. Histograms of codec codes select candidates, an alignment of their frames confirms them, and one file of "
    "each group of copies is kept. Writes an exclusion list for training, the pairs and groups, and a page with "
    "players. An interrupted run resumes when started again. Under torchrun the processes share the analysis. Exit "
    "status 1 if the dataset and --against share a recording.",
)


def run_index(settings: IndexSettings) -> int:
    from stable_audio_tools.dedup.passages.index import PassageIndex
    from stable_audio_tools.dedup.passages.run import build_index

    failures = build_index(settings)
    if ranks.is_rank_zero():
        for failure in failures:
            print(f"{failure.path}: {failure.error}", file=sys.stderr)
        print(
            f"{settings.index}: {len(PassageIndex(settings.index))} recordings, {len(failures)} could not be analysed"
        )
    return 0


dedup_index = Command(
    IndexSettings,
    run_index,
    "Index whole recordings by landmarks of their spectra, for `dedup find` and for `generate --check-copies`. "
    "Recordings that the index already holds are skipped, so an interrupted run continues. Under torchrun the "
    "processes share the files.",
)


def run_find(settings: FindSettings) -> int:
    from stable_audio_tools.dedup.passages.run import find_copies

    outcome = find_copies(settings)
    for failure in outcome.failures:
        print(f"{failure.path}: {failure.error}", file=sys.stderr)
    for match in outcome.matches if settings.audio else ():
        longest = max(match.passages, key=lambda passage: passage.seconds)
        print(
            f"{match.query.name}: {match.kind}, {longest.start:.1f} to {longest.end:.1f} s is "
            f"{match.track.name} from {longest.track_start:.1f} s"
        )
    excluded = "" if settings.audio else f", {len(outcome.excluded)} files to exclude"
    print(f"{settings.output_dir / 'audit.html'}: {len(outcome.matches)} matches{excluded}")
    return 1 if settings.audio and outcome.matches else 0


dedup_find = Command(
    FindSettings,
    run_find,
    "Find passages that recordings share: copies that were encoded again, filtered, cut, or changed in speed, pitch or "
    "tempo, excerpts, and medleys. Searches an index for files, or for copies among its own recordings, and writes "
    "matches.jsonl, passages.csv, an exclusion list and a page with players. Exit status 1 if a file of --audio shares "
    "a passage with the index.",
)
