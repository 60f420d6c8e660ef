"""`generate`: a file of prompts to a folder of audio."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.lora_choice import LoraChoice, lora_choice

DEFAULT_MODEL = "stabilityai/stable-audio-open-1.0"
FORMATS = ("wav", "flac", "mp3", "ogg", "opus")


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "generate.py",
        "Generate the prompts of a YAML, CSV or JSONL file. What is complete in the output folder is kept, so a run "
        "that was stopped goes on when started again. Several GPUs or nodes: torchrun "
        "--nproc_per_node N generate.py ...",
    )
    made.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder to write to")
    made.add_argument(
        "--cond-yaml-path",
        type=Path,
        metavar="FILE",
        help="prompts: .yaml, .json, .csv or .jsonl; may be left out for models that are told nothing",
    )
    add_model_flags(made)
    sampling = made.add_argument_group("sampling (a prompt may have its own; without, what suits the model)")
    sampling.add_argument("--sample-steps", type=int, metavar="N", help="steps of the sampler")
    sampling.add_argument("--cfg-scale", type=float, metavar="X", help="guidance by the prompt; 1 is none")
    sampling.add_argument("--sampler-type", metavar="NAME", help="sampler, such as dpmpp-3m-sde or euler")
    sampling.add_argument("--sigma-min", type=float, metavar="X", help="least noise before the last step")
    sampling.add_argument("--sigma-max", type=float, metavar="X", help="noise to start from")
    sampling.add_argument("--eta", type=float, metavar="X", help="fresh noise of ddim, 0 to 1; without, 0")
    sampling.add_argument("--negative-prompt", metavar="TEXT", help="what to be led away from")
    sampling.add_argument(
        "--seed", type=int, default=0, help="0 if left out; each file gets its own from it; -1 draws at random"
    )
    sampling.add_argument(
        "--compile", action="store_true", help="compile the network first: a minute, and then faster steps on a GPU"
    )
    amount = made.add_argument_group("amount")
    amount.add_argument("--n-sample-per-cond", type=int, default=1, metavar="N", help="files per prompt")
    amount.add_argument(
        "--batch-size",
        type=int,
        default=10,
        metavar="N",
        help="items through the network at once; guidance counts twice",
    )
    amount.add_argument(
        "--clip-length",
        type=float,
        nargs="?",
        const=True,
        default=False,
        metavar="SECONDS",
        help="cut files to the length that the prompt asks for, or to that many seconds; else the model's whole window",
    )
    add_mode_flags(made)
    files = made.add_argument_group("files")
    add_file_flags(files)
    files.add_argument(
        "--keep-latents", action="store_true", help="also keep the latents of each file, as NAME.npy, for attribution"
    )
    memory = made.add_argument_group("memory")
    memory.add_argument("--decode-frames", type=int, metavar="N", help="decode that many latent frames at a time")
    memory.add_argument("--offload", action="store_true", help="keep parts of the model off the GPU while unused")
    return made


def add_model_flags(made: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    model = made.add_argument_group("model: a name or folder, or a config with its weights")
    model.add_argument(
        "--pretrained-name",
        "--model-name",
        dest="pretrained_name",
        metavar="NAME",
        help=f"name on the Hugging Face Hub, or folder (else {default})" if default else "name on the Hub, or folder",
    )
    model.add_argument("--model-config", type=Path, metavar="JSON", help="model config")
    model.add_argument("--ckpt-path", type=Path, metavar="FILE", help="weights")
    model.add_argument(
        "--lora",
        type=lora_choice,
        action="append",
        default=[],
        metavar="PATH[:STRENGTH]",
        help="adapter to put on the model, and how strongly it acts (else 1); may be given several times",
    )
    model.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (else the best there is)")
    model.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "float16", "auto"),
        help="float32 gives the published numbers; the others are faster and a little off",
    )


def add_mode_flags(made: argparse.ArgumentParser) -> None:
    mode = made.add_argument_group("from other audio")
    mode.add_argument(
        "--mode",
        choices=("variation", "inpaint", "outpaint", "interpolate"),
        help="vary the audio, make spans of it anew, continue it, or go from it to another clip (in as many files as "
        "--n-sample-per-cond)",
    )
    mode.add_argument("--audio", metavar="FILE", help="the audio to work on")
    mode.add_argument("--to-audio", metavar="FILE", help="interpolate: the clip to go to")
    mode.add_argument("--noise-level", type=float, metavar="X", help="variation: how far to go from the audio")
    mode.add_argument("--spans", metavar="FROM-TO,...", help="inpaint: seconds to make anew, such as 1.5-3,8-9")
    mode.add_argument("--seconds", type=float, metavar="SECONDS", help="outpaint: length in all")
    mode.add_argument(
        "--overlap", type=float, metavar="SECONDS", help="outpaint: what each window is given (else a quarter of it)"
    )
    mode.add_argument(
        "--crossfade", type=float, metavar="SECONDS", help="at seams (else 0.02, outpaint: half of the overlap)"
    )
    mode.add_argument("--keep-level", action="store_true", help="outpaint: do not match the loudness of windows")


def edit_of(arguments: argparse.Namespace) -> Any:
    """What the flags of `--mode` say; None without it."""
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.inference.generation.edits import Edit
    from stable_audio_tools.interface.waveforms import parse_spans

    names = ("to_audio", "noise_level", "spans", "seconds", "overlap", "crossfade")
    given = {name: getattr(arguments, name) for name in names}
    if arguments.mode is None:
        given |= {"audio": arguments.audio, "keep_level": arguments.keep_level or None}
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise ConfigError(f"--{named[0].replace('_', '-')}: needs --mode, which says what to do with the audio")
        return None
    if arguments.audio is None:
        raise ConfigError(f"--audio: missing; --mode {arguments.mode} needs the audio to work on")
    if given["spans"] is not None:
        try:
            given["spans"] = tuple(parse_spans(given["spans"]))
        except ValueError as error:
            raise ConfigError(f"--{error}") from None
    return Edit(arguments.mode, arguments.audio, match_loudness=not arguments.keep_level, **given)


def add_file_flags(files: Any) -> None:
    files.add_argument("--format", default="wav", choices=FORMATS, help="format of the audio files")
    files.add_argument(
        "--bits", type=int, default=16, choices=(16, 24, 32), help="of wav (32 is float) and flac samples"
    )
    files.add_argument("--overwrite", action="store_true", help="make every file again")
    files.add_argument("--json", action="store_true", help="print a line of JSON for each file")


def source_of(arguments: argparse.Namespace, default: str = DEFAULT_MODEL) -> tuple[Any, Path | None]:
    """What `load` takes: a model and its weights."""
    from stable_audio_tools.core.errors import ConfigError

    name, config, weights = arguments.pretrained_name, arguments.model_config, arguments.ckpt_path
    if name is not None and (config is not None or weights is not None):
        raise ConfigError("--pretrained-name: give it alone, or --model-config with --ckpt-path instead")
    if config is not None and weights is None:
        raise ConfigError("--ckpt-path: missing; --model-config needs the weights too")
    if config is None and weights is not None:
        return weights, None  # which may hold their config
    if config is None and name is None and not default:
        raise ConfigError("--model-config: missing; give it with --ckpt-path, or --pretrained-name")
    return (config, weights) if config is not None else (name or default, None)


def load_model(arguments: argparse.Namespace, source: tuple[Any, Path | None]) -> Any:
    """The model on the device of this process."""
    from stable_audio_tools.inference.generation.model import load

    check_adapters(arguments.lora)
    model = load(*source, process_device(arguments.device), precision=arguments.precision)
    for choice in arguments.lora:
        model.load_lora(choice.path, choice.strength)
    return model


def check_adapters(choices: Sequence[LoraChoice]) -> None:
    """Read the adapters' files, so that their mistakes are told before weights are read."""
    from stable_audio_tools.models.lora import read_lora

    for choice in choices:
        read_lora(choice.path)


def process_device(name: str | None) -> Any:
    """The device of this process: its own GPU where a launcher started several."""
    import torch

    from stable_audio_tools.core.devices import pick_device
    from stable_audio_tools.core.errors import UserError
    from stable_audio_tools.core.ranks import local_rank, world_size

    try:
        device = pick_device(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if device == torch.device("cuda") and world_size() > 1:
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if device.type == "cpu" and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        # torchrun's default. Sums over fewer threads round otherwise, and files should not tell how they were shared.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return device


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.inference.batch.run import BatchSettings, check_targets, plan_batch, run_batch
    from stable_audio_tools.inference.generation.facts import facts_of
    from stable_audio_tools.inference.generation.model import find_config

    settings = BatchSettings(
        steps=arguments.sample_steps,
        cfg_scale=arguments.cfg_scale,
        sampler_type=arguments.sampler_type,
        sigma_min=arguments.sigma_min,
        sigma_max=arguments.sigma_max,
        negative_prompt=arguments.negative_prompt,
        n_sample_per_cond=arguments.n_sample_per_cond,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        clip_length=arguments.clip_length,
        format=arguments.format,
        bits=arguments.bits,
        decode_frames=arguments.decode_frames,
        offload=arguments.offload,
        overwrite=arguments.overwrite,
        keep_latents=arguments.keep_latents,
        eta=arguments.eta,
        edit=edit_of(arguments),
    )
    source = source_of(arguments)
    config = find_config(*source)
    if config is not None:  # mistakes are told before weights are read
        planned = plan_batch(arguments.cond_yaml_path, facts_of(config), settings)
        check_targets(planned, OutputFolder(arguments.output_dir), settings)
    model = load_model(arguments, source)
    if arguments.compile:
        model.compile()
    batches = plan_batch(arguments.cond_yaml_path, model.facts, settings)
    output = OutputFolder(arguments.output_dir)
    if config is None:
        check_targets(batches, output, settings)

    def tell(record: dict[str, Any], is_new: bool) -> None:
        if arguments.json:
            print(json.dumps({**record, "new": is_new}), flush=True)
        else:
            print(f"{'made' if is_new else 'kept'} {arguments.output_dir / record['file']}", flush=True)

    run_batch(model, batches, output, settings, tell)
    return 0


main = command(parser, run)
