"""`evaluate-fad`: distances between sets of audio, for each pair of sets and each embedder."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "evaluate_fad.py",
        "Measure how far generated audio is from reference audio: Fréchet audio distance for every reference set, "
        "generated set and embedder, and more on demand. Writes scores.json, scores.csv and index.html. Vectors are "
        "cached: a run that was killed goes on. Several GPUs or nodes: torchrun --nproc_per_node N evaluate_fad.py ...",
    )
    sets = made.add_argument_group("sets and embedders")
    sets.add_argument(
        "--reference",
        "--reference-paths",
        "--reference_paths",
        dest="reference",
        nargs="+",
        required=True,
        metavar="SET",
        help="folders of audio, or .npz files of statistics that fadtk packed",
    )
    sets.add_argument(
        "--generated",
        "--generated-paths",
        "--generated_paths",
        "--generated-path",
        "--generated_path",
        dest="generated",
        nargs="+",
        required=True,
        metavar="SET",
        help="the sets to judge",
    )
    sets.add_argument(
        "--embedder",
        "--model-names",
        "--model_names",
        dest="embedder",
        nargs="+",
        default=["logmel"],
        metavar="NAME",
        help="logmel, mfcc, clap:name=FOLDER, vggish:checkpoint=FILE, MERT-v1-95M-7, ... or a JSON file; see "
        "docs/evaluation.md",
    )
    sets.add_argument("--limit", type=int, metavar="N", help="take the first N files of each folder")
    sets.add_argument(
        "--read-fadtk", action="store_true", help="take the vectors or statistics that fadtk left in a folder"
    )
    sets.add_argument(
        "--metric",
        choices=("frechet_audio_distance",),
        default="frechet_audio_distance",
        help="what is always measured; the flags below add more",
    )
    scores = made.add_argument_group("scores beside the Fréchet distance")
    scores.add_argument("--inf", action="store_true", help="extrapolate to endlessly many frames")
    scores.add_argument("--per-song", "--indiv", action="store_true", help="the distance of each generated file alone")
    scores.add_argument("--kernel", action="store_true", help="kernel distance (unbiased), with a bootstrap interval")
    scores.add_argument("--coverage", action="store_true", help="density and coverage")
    scores.add_argument(
        "--paired",
        action="store_true",
        help="compare files of the same name: SI-SDR, STFT and mel distance, and KL where the embedder is a classifier",
    )
    scores.add_argument(
        "--unit", choices=("frames", "files"), default="frames", help="what counts as one: a window, or a file's mean"
    )
    scores.add_argument("--seed", type=int, default=0, help="of what is drawn: parts of a set, bootstrap samples")
    work = made.add_argument_group("work")
    work.add_argument(
        "--output", "-o", type=Path, default=Path("outputs/fad"), metavar="DIR", help="folder to write to"
    )
    work.add_argument("--cache-dir", type=Path, metavar="DIR", help="folder of cached vectors (else OUTPUT/embeddings)")
    work.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows through a network at once")
    work.add_argument(
        "--num-workers", "-w", type=int, default=4, metavar="N", help="files to decode ahead, at the same time"
    )
    work.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (else the best there is)")
    work.add_argument("--log-dir", "--log_dir", type=Path, metavar="DIR", help="TensorBoard folder for the scores")
    work.add_argument("--log-step", "--log_step", type=int, default=0, metavar="N", help="their step there")
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.cli.generate import process_device
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.evaluation.report import as_csv, as_html, rows_of, songs_csv
    from stable_audio_tools.evaluation.results import as_table, write_results
    from stable_audio_tools.evaluation.scoring import ScoreSettings, score_sets

    settings = ScoreSettings(
        inf=arguments.inf,
        per_song=arguments.per_song,
        kernel=arguments.kernel,
        coverage=arguments.coverage,
        paired=arguments.paired,
        unit=arguments.unit,
        seed=arguments.seed,
        limit=arguments.limit,
        read_fadtk=arguments.read_fadtk,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    output = arguments.output
    cache = arguments.cache_dir or output / "embeddings"
    device = str(process_device(arguments.device))
    results = score_sets(arguments.reference, arguments.generated, arguments.embedder, cache, settings, device)
    if results is None:
        return 0  # another process is still at work, and writes
    rows = rows_of(results)
    write_results(output / "scores.json", results)
    write_text(output / "scores.csv", as_csv(rows))
    write_text(output / "index.html", as_html(results))
    names = names_of(rows)
    for name, result in zip(names, results):
        if "per_song" in result.details:
            write_text(output / "per_song" / f"{name}.csv", songs_csv(result))
    if arguments.log_dir is not None:
        log_to_tensorboard(arguments.log_dir, arguments.log_step, dict(zip(names, rows)))
    print(as_table([{**row, **{key: Path(row[key]).name for key in ("reference", "generated")}} for row in rows]))
    print(f"wrote {output / 'scores.json'}, scores.csv and index.html", flush=True)
    return 1 if any(row["failed"] for row in rows) else 0


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`fad_<embedder>_ref_<set>_gen_<set>`, of letters that any file system takes; equal ones are numbered."""
    names: list[str] = []
    for row in rows:
        sets = {key: Path(str(row[key])).stem or "set" for key in ("reference", "generated")}
        text = f"fad_{row['embedder']}_ref_{sets['reference']}_gen_{sets['generated']}"
        name = plain = re.sub(r"[^\w.-]+", "-", text)
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def log_to_tensorboard(folder: Path, step: int, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A scalar for each distance, named after its sets and its embedder."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for name, row in rows.items():
        writer.add_scalar(name, row["fad"], step)
    writer.close()


main = command(parser, run)
