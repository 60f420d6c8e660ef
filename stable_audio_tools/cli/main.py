"""`stable-audio-tools GROUP COMMAND`: every command of the toolkit under one name, grouped by subject."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from stable_audio_tools.version import __version__

PROGRAM = "stable-audio-tools"


class Entry(NamedTuple):
    place: str  # module below cli, and the command in it where it is not `main`
    summary: str


COMMANDS = {
    "train": Entry("train", "train a model of any type"),
    "generate": Entry("generate", "generate audio for prompts"),
    "app": Entry("run_gradio", "open a model in the browser, and behind an HTTP API"),
    "unwrap": Entry("unwrap", "write the model out of a training checkpoint"),
    "lora train": Entry("train:train_lora", "train a small adapter of a model that stays as it is"),
    "lora info": Entry("lora:info", "say what an adapter file is and holds"),
    "lora convert": Entry("lora:convert", "write an adapter file in the format of another program"),
    "lora merge": Entry("lora:merge", "add adapters to the weights of their base model"),
    "lora extract": Entry("lora:extract", "make an adapter of the difference between two models"),
    "data check": Entry("check_data", "look for files of a dataset that are broken, silent, doubled, unlabelled"),
    "data encode": Entry("encode", "encode a dataset of audio to a dataset of latents"),
    "data encode-text": Entry("encode:encode_text", "encode texts once, for conditions that are looked up"),
    "data images": Entry("mel:images", "cut audio into mel spectrograms: latents, or a Hugging Face dataset"),
    "data download": Entry("download_jamendo", "download audio and tables of MTG-Jamendo"),
    "data example": Entry("make_example_dataset", "write short synthetic clips with captions to try things on"),
    "dedup": Entry("dedup", "find files of a dataset that hold the same recording"),
    "evaluate fad": Entry("evaluate:fad", "measure how far sets of audio are from reference sets"),
    "evaluate song-describer": Entry("evaluate:song_describer", "score a text-to-audio checkpoint on captioned tracks"),
    "evaluate embed-song-describer": Entry("evaluate:embed_song_describer", "embed captioned tracks, as references"),
    "evaluate reconstruct": Entry(
        "evaluate:reconstruct", "pass audio files through an autoencoder and measure the result"
    ),
    "evaluate compare": Entry("evaluate:compare", "print result files side by side, where they are comparable"),
    "attribute extract": Entry("attribute:extract", "write projected gradients of items"),
    "attribute merge": Entry("attribute:merge", "join the features that several processes wrote"),
    "attribute score": Entry("attribute:score", "score training items for generated files"),
    "attribute validate make-subsets": Entry("attribute:make_subsets", "draw random subsets of the training items"),
    "attribute validate make-removals": Entry("attribute:make_removals", "draw lists without the best items"),
    "attribute validate train": Entry("attribute:train", "train a model on each list"),
    "attribute validate measure": Entry("attribute:measure", "measure the output of every model for every query"),
    "attribute validate lds": Entry("attribute:lds", "compute the linear datamodeling score"),
    "attribute validate counterfactual": Entry("attribute:counterfactual", "compare removals with random ones"),
    "mel decode": Entry("mel:decode", "turn mel spectrograms into audio"),
    "mel convert": Entry("mel:convert", "turn audio diffusion pipelines of diffusers into models, and back"),
    "check": Entry("check", "check a model config (and a dataset config) and print what it builds"),
    "schema": Entry("schema", "write JSON Schemas of the configs, for editors"),
    "info": Entry("info", "describe this installation, or a weight file"),
}

# Published scripts, and names that commands had before they were grouped -> the command.
ALIASES = {
    "train.py": "train",
    "train_lora.py": "lora train",
    "generate.py": "generate",
    "run_gradio.py": "app",
    "unwrap_model.py": "unwrap",
    "pre_encode.py": "data encode",
    "reconstruct_audios.py": "evaluate reconstruct",
    "audio_to_images.py": "data images",
    "check_dataset.py": "data check",
    "convert_bigvgan_pt_to_audio.py": "mel decode",
    "convert_pipeline.py": "mel convert",
    "dac_hist_dedup.py": "dedup",
    "decode_mel.py": "mel decode",
    "download_mtg_jamendo.py": "data download",
    "dtrak_extract_features.py": "attribute extract",
    "dtrak_merge.py": "attribute merge",
    "dtrak_score.py": "attribute score",
    "dtrak_validate.py": "attribute validate",
    "encode_text.py": "data encode-text",
    "eval_song_describer_checkpoint_clap.py": "evaluate song-describer",
    "evaluate_fad.py": "evaluate fad",
    "make_example_dataset.py": "data example",
    "precompute_song_describer_clap_embeddings.py": "evaluate embed-song-describer",
    "train-lora": "lora train",
    "run-gradio": "app",
    "unwrap-model": "unwrap",
    "pre-encode": "data encode",
    "reconstruct-audios": "evaluate reconstruct",
    "audio-to-images": "data images",
    "check-data": "data check",
    "convert-pipeline": "mel convert",
    "deduplicate": "dedup",
    "decode-mel": "mel decode",
    "download-jamendo": "data download",
    "dtrak-extract-features": "attribute extract",
    "dtrak-merge": "attribute merge",
    "dtrak-score": "attribute score",
    "dtrak-validate": "attribute validate",
    "encode-text": "data encode-text",
    "score-song-describer": "evaluate song-describer",
    "evaluate-fad": "evaluate fad",
    "make-example-dataset": "data example",
    "embed-song-describer": "evaluate embed-song-describer",
    "compare-scores": "evaluate compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> exit status."""
    return _dispatch(list(sys.argv[1:] if argv is None else argv), PROGRAM)


def run_script(path: str) -> int:
    """Run the command that a published script stands for, with the words of the command line -> exit status."""
    name = Path(path).name
    return _dispatch([*ALIASES[name].split(), *sys.argv[1:]], PROGRAM, name)


def load_command(name: str) -> Any:
    """The command of an entry of `COMMANDS`."""
    module, _, attribute = COMMANDS[name].place.partition(":")
    return getattr(import_module(f"stable_audio_tools.cli.{module}"), attribute or "main")


def find_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """(the longest name of a command or a group that the words begin with, the words behind it); "" where none is."""
    if words and words[0] in ALIASES:
        words = [*ALIASES[words[0]].split(), *words[1:]]
    names = {" ".join(name.split()[:length]) for name in COMMANDS for length in (1, 2, 3)}
    length = max((length for length in range(1, 4) if " ".join(words[:length]) in names), default=0)
    return " ".join(words[:length]), list(words[length:])


def _dispatch(words: list[str], program: str, script: str = "") -> int:
    name, rest = find_command(words)
    if name in COMMANDS:
        shown = script if script and ALIASES[script] == name else f"{program} {name}"
        run: Callable[[list[str], str], int] = load_command(name)
        return run(rest, shown)
    if not rest or rest[0] in ("-h", "--help"):
        print(_usage(name))
        return 0 if rest else 2
    if not name and rest[0] in ("-V", "--version"):
        print(f"stable-audio-tools {__version__}")
        return 0
    from stable_audio_tools.core.config.sentences import nearest

    known = [entry.removeprefix(name).strip() for entry in COMMANDS if entry.startswith(name)]
    if not name:
        known += [alias for alias in ALIASES if not alias.endswith(".py")]
    print(f"error: no command named {f'{name} {rest[0]}'.strip()!r}; {nearest(rest[0], known)}", file=sys.stderr)
    return 2


def _usage(group: str) -> str:
    """The commands of a group, or all."""
    listed = {name: entry for name, entry in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, listed))
    return "\n".join(
        [
            f"usage: {PROGRAM} {group or 'COMMAND'} [flags]     (a command with --help lists its flags)",
            "",
            *(f"  {name:{width}}  {entry.summary}" for name, entry in listed.items()),
            *(() if group else ("", "  --version  print the version")),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
