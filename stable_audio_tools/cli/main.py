"""`stable-audio-tools COMMAND`: every command of the toolkit under one name."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from stable_audio_tools.version import __version__


class Entry(NamedTuple):
    module: str
    summary: str


COMMANDS = {
    "train": Entry("train", "train a model of any type"),
    "train-lora": Entry("train_lora", "train a small adapter of a model that stays as it is"),
    "generate": Entry("generate", "generate audio for a file of prompts"),
    "reconstruct-audios": Entry("reconstruct_audios", "pass audio files through an autoencoder and measure the result"),
    "run-gradio": Entry("run_gradio", "open a model in the browser, and behind an HTTP API"),
    "pre-encode": Entry("pre_encode", "encode a dataset of audio to a dataset of latents"),
    "audio-to-images": Entry("audio_to_images", "cut audio into mel spectrograms: latents, or a Hugging Face dataset"),
    "decode-mel": Entry("decode_mel", "make audio of mel spectrograms"),
    "encode-text": Entry("encode_text", "encode texts once, for conditions that are looked up"),
    "convert-pipeline": Entry("convert_pipeline", "turn audio diffusion pipelines of diffusers into models, and back"),
    "check-data": Entry("check_data", "look through a dataset for files that are broken, silent, doubled, unlabelled"),
    "deduplicate": Entry("deduplicate", "find files of a dataset that hold the same recording"),
    "download-jamendo": Entry("download_jamendo", "download audio and tables of MTG-Jamendo"),
    "lora": Entry("lora", "describe, convert, merge and extract adapter files"),
    "unwrap-model": Entry("unwrap_model", "write the model out of a training checkpoint"),
    "check": Entry("check", "check a model config (and a dataset config) and print what it builds"),
    "schema": Entry("schema", "write JSON Schemas of the configs, for editors"),
    "make-example-dataset": Entry("make_example_dataset", "write short synthetic clips with captions to try things on"),
    "evaluate-fad": Entry("evaluate_fad", "measure how far sets of audio are from reference sets"),
    "embed-song-describer": Entry("embed_song_describer", "embed captioned tracks, as references for checkpoints"),
    "score-song-describer": Entry("score_song_describer", "score a text-to-audio checkpoint on captioned tracks"),
    "compare-scores": Entry("compare_scores", "print result files side by side, where they are comparable"),
    "dtrak-extract-features": Entry("dtrak_extract_features", "projected gradients of items, for attribution"),
    "dtrak-merge": Entry("dtrak_merge", "join the features that several processes wrote"),
    "dtrak-score": Entry("dtrak_score", "which training items made an output"),
    "dtrak-validate": Entry("dtrak_validate", "subset models and the linear datamodeling score"),
    "info": Entry("info", "describe this installation, or a weight file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"stable-audio-tools {__version__}")
        return 0
    if words[0] not in COMMANDS:
        from stable_audio_tools.core.config.sentences import nearest

        print(f"error: no command named {words[0]!r}; {nearest(words[0], COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(f"stable_audio_tools.cli.{COMMANDS[words[0]].module}")
    status: int = module.main(words[1:])
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: stable-audio-tools COMMAND [flags]     (stable-audio-tools COMMAND --help for its flags)",
            "",
            *lines,
            "",
            "  --version  print the version",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
