"""`embed-song-describer`: the vectors of captioned tracks that models are judged by."""

import argparse
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser

FOLDER = Path("dataset/small-700")


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "precompute_song_describer_clap_embeddings.py",
        "Embed the tracks and the captions of Song Describer once, as references for checkpoints. Each track is "
        "embedded once, however many captions it has; a run that was killed goes on. Several GPUs or nodes: torchrun. "
        "Exit status 1 when tracks were left out.",
    )
    made.add_argument(
        "--csv-path", type=Path, default=FOLDER / "song_describer.csv", metavar="CSV", help="table of captions"
    )
    made.add_argument("--audio-dir", type=Path, default=FOLDER / "audio", metavar="DIR", help="folder of their tracks")
    made.add_argument(
        "--output-path",
        type=Path,
        default=FOLDER / "song_describer_clap_embeddings.npz",
        metavar="NPZ",
        help="file to write",
    )
    made.add_argument(
        "--prompt-source",
        choices=("caption", "training_style"),
        default="caption",
        help="prompts: the captions, or what a metadata module writes for the track",
    )
    made.add_argument("--prompt-seed", type=int, default=0, help="of what that module draws")
    made.add_argument(
        "--custom-metadata-module", type=Path, metavar="PY", help="that module (else the shipped custom_md_fma.py)"
    )
    made.add_argument(
        "--clap-model-name",
        default="laion/clap-htsat-fused",
        metavar="NAME",
        help="hub name or folder of a CLAP of transformers, or a checkpoint of laion-clap (.pt)",
    )
    made.add_argument(
        "--embedder",
        metavar="NAME",
        help="another embedder, such as logmel; one that takes no texts gives no agreement",
    )
    made.add_argument("--clap-sample-rate", type=int, default=48000, metavar="HZ", help="48000, the rate of CLAP")
    made.add_argument(
        "--audio-batch-size", type=int, default=8, metavar="N", help="windows through the network at once"
    )
    made.add_argument("--text-batch-size", type=int, default=64, metavar="N", help="texts through CLAP at once")
    made.add_argument("--num-workers", type=int, default=4, metavar="N", help="files to decode ahead, at the same time")
    made.add_argument("--limit", type=int, metavar="N", help="take the first N rows")
    made.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="folder of cached vectors (else embeddings, beside the output)"
    )
    made.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps, or the best there is")
    return made


def run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from stable_audio_tools.cli.generate import process_device
    from stable_audio_tools.core.errors import UserError
    from stable_audio_tools.evaluation.embedders import TextEmbedder, create_embedder, mean_vector
    from stable_audio_tools.evaluation.embedders.presets import node_of
    from stable_audio_tools.evaluation.embedding import embed_files
    from stable_audio_tools.evaluation.song_describer.captions import TRAINING_STYLE, in_training_style, read_captions
    from stable_audio_tools.evaluation.song_describer.references import clap_node, write_references

    check(arguments)
    captions, missing = read_captions(arguments.csv_path, arguments.audio_dir, arguments.limit)
    if arguments.prompt_source == "training_style":
        module = arguments.custom_metadata_module or TRAINING_STYLE
        captions = in_training_style(captions, arguments.prompt_seed, module)
    node = node_of(arguments.embedder) if arguments.embedder else clap_node(arguments.clap_model_name)
    embedder = create_embedder(node, process_device(arguments.device))
    cache = arguments.cache_dir or arguments.output_path.parent / "embeddings"
    tracks = {str(caption.audio): caption.audio for caption in captions}
    found = embed_files(embedder, tracks, cache, arguments.audio_batch_size, arguments.num_workers, "tracks")
    if found is None:
        return 0  # another process is still at work, and writes
    kept = [caption for caption in captions if str(caption.audio) in found.frames]
    if not kept:
        raise UserError(f"{arguments.audio_dir}: none of {len(tracks)} tracks could be embedded")
    audio = np.stack([mean_vector(found.frames[str(caption.audio)]) for caption in kept])
    prompts = [caption.prompt for caption in kept]
    texts: Any = np.zeros((len(kept), 0), np.float32)
    if isinstance(embedder, TextEmbedder):
        texts = embedder.embed_texts(prompts, arguments.text_batch_size)
    write_references(arguments.output_path, kept, audio, texts, embedder, node)
    left_out = len(missing) + len(found.failed)
    print(f"{arguments.output_path}: {len(kept)} captions of {len(found.frames)} tracks, {left_out} tracks left out")
    return 1 if left_out else 0


def check(arguments: argparse.Namespace) -> None:
    """Numbers that cannot be right."""
    from stable_audio_tools.core.errors import ConfigError

    names = ("audio_batch_size", "text_batch_size", "num_workers", *(["limit"] if arguments.limit is not None else []))
    problems = [
        f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}"
        for name in names
        if getattr(arguments, name) < 1
    ]
    if arguments.clap_sample_rate != 48000:
        problems.append(f"--clap-sample-rate: CLAP hears 48000 Hz, got {arguments.clap_sample_rate}")
    if problems:
        raise ConfigError(problems)


main = command(parser, run)
