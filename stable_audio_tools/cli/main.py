"""`stable-audio-tools GROUP COMMAND`: every command of the toolkit under one name, grouped by subject."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from stable_audio_tools.version import __version__

PROGRAM = "stable-audio-tools"


class CommandEntry(NamedTuple):
    place: str  # module in cli, and the name of the command if it is not `main`
    summary: str


COMMANDS = {
    "train": CommandEntry("train", "train a model of any type"),
    "generate": CommandEntry("generate", "generate audio for prompts"),
    "app": CommandEntry("run_gradio", "open a model in the browser, and behind an HTTP API"),
    "serve": CommandEntry("serve", "serve models over HTTP, with a queue of jobs"),
    "unwrap": CommandEntry("train:unwrap", "write the model out of a training checkpoint"),
    "finetune": CommandEntry("train:finetune", "adapt a model to a folder of recordings, in one command"),
    "lora train": CommandEntry("train:train_lora", "train a low-rank adapter of a frozen model"),
    "lora info": CommandEntry("lora:info", "describe an adapter file"),
    "lora convert": CommandEntry("lora:convert", "convert an adapter file to the format of another program"),
    "lora merge": CommandEntry("lora:merge", "merge adapters into the weights of their base model"),
    "lora combine": CommandEntry("lora:combine", "combine several adapters into one"),
    "lora extract": CommandEntry("lora:extract", "make an adapter of the difference between two models"),
    "data check": CommandEntry("data:check", "report broken, silent, duplicate and unlabelled files of a dataset"),
    "data encode": CommandEntry("data:encode", "encode a dataset of audio to a dataset of latents"),
    "data encode-text": CommandEntry("data:encode_text", "encode texts once, for precomputed conditions"),
    "data images": CommandEntry("mel:images", "convert audio to mel spectrograms: latents, or a Hugging Face dataset"),
    "data download": CommandEntry("data:download", "download audio and tables of MTG-Jamendo"),
    "data example": CommandEntry("data:example", "write short synthetic clips with captions, for experiments"),
    "dedup": CommandEntry("data:dedup", "find files of a dataset with the same recording"),
    "dedup index": CommandEntry("data:dedup_index", "index whole recordings, to find shared passages"),
    "dedup find": CommandEntry("data:dedup_find", "find passages that recordings share with an index"),
    "evaluate fad": CommandEntry("evaluate:fad", "measure distances between sets of audio and reference sets"),
    "evaluate model": CommandEntry(
        "evaluate:model", "generate audio for prompts, score it and write a page with players and plots"
    ),
    "evaluate song-describer": CommandEntry(
        "evaluate:song_describer", "score a text-to-audio checkpoint on captioned tracks"
    ),
    "evaluate embed-song-describer": CommandEntry(
        "evaluate:embed_song_describer", "embed captioned tracks, as references"
    ),
    "evaluate reconstruct": CommandEntry(
        "evaluate:reconstruct", "encode and decode audio files with an autoencoder and measure the result"
    ),
    "evaluate compare": CommandEntry("evaluate:compare", "print comparable result files side by side"),
    "attribute extract": CommandEntry("attribute:extract", "write projected gradients of items"),
    "attribute merge": CommandEntry("attribute:merge", "join the features of several processes"),
    "attribute score": CommandEntry("attribute:score", "score training items for generated files"),
    "attribute validate make-subsets": CommandEntry(
        "attribute:make_subsets", "draw random subsets of the training items"
    ),
    "attribute validate make-removals": CommandEntry("attribute:make_removals", "write lists without the best items"),
    "attribute validate train": CommandEntry("attribute:train", "train a model on each list"),
    "attribute validate measure": CommandEntry(
        "attribute:measure", "measure the output of every model for every query"
    ),
    "attribute validate lds": CommandEntry("attribute:lds", "compute the linear datamodeling score"),
    "attribute validate counterfactual": CommandEntry("attribute:counterfactual", "compare removals with random ones"),
    "mel decode": CommandEntry("mel:decode", "convert mel spectrograms to audio"),
    "mel convert": CommandEntry("mel:convert", "convert audio diffusion pipelines of diffusers to models, and back"),
    "mel train-vae": CommandEntry("mel_guide:train_vae", "train an autoencoder on spectrograms, with a guide's flags"),
    "mel train-unet": CommandEntry("mel_guide:train_unet", "train a U-Net on spectrograms, with a guide's flags"),
    "mel inference-unet": CommandEntry("mel_guide:inference_unet", "generate audio with a U-Net over spectrograms"),
    "check": CommandEntry("describe:check", "check a model config and a dataset config, and print a summary"),
    "schema": CommandEntry("describe:schema", "write JSON Schemas of the configs, for editors"),
    "info": CommandEntry("describe:info", "describe this installation, or a weight file"),
}

# Published scripts, and earlier names of commands -> the command.
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
    "evaluation.py": "evaluate fad",
    "inference_unet.py": "mel inference-unet",
    "train_unet.py": "mel train-unet",
    "train_vae.py": "mel train-vae",
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
    """Run one command and return its exit status."""
    return _dispatch(list(sys.argv[1:] if argv is None else argv), PROGRAM)


def run_script(path: str) -> int:
    """Run the command of a published script with the current command line and return its exit status."""
    name = Path(path).name
    return _dispatch([*ALIASES[name].split(), *sys.argv[1:]], PROGRAM, name)


def load_command(name: str) -> Any:
    """Import the command of an entry of `COMMANDS`."""
    module, _, attribute = COMMANDS[name].place.partition(":")
    return getattr(import_module(f"stable_audio_tools.cli.{module}"), attribute or "main")


def find_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split words into the longest leading name of a command or group ("" if there is none) and the rest."""
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
    """List the commands of a group, or all commands."""
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
