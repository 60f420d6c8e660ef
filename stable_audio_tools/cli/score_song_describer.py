"""`score-song-describer`: a checkpoint on the captions of Song Describer."""

import argparse
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "eval_song_describer_checkpoint_clap.py",
        "Generate audio for the captions of Song Describer and score it: Fréchet and kernel distance to the tracks, "
        "agreement with the captions. Writes scores.json and prompts.csv. What is generated counts after a kill too. "
        "Several GPUs or nodes: torchrun --nproc_per_node N eval_song_describer_checkpoint_clap.py ...",
    )
    model = made.add_argument_group("model")
    model.add_argument("--model-config", type=Path, required=True, metavar="JSON", help="model config")
    model.add_argument(
        "--ckpt-path", type=Path, required=True, metavar="FILE", help="weights, or a training checkpoint"
    )
    model.add_argument("--pretransform-ckpt-path", type=Path, metavar="FILE", help="weights of its autoencoder")
    model.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps, or the best there is")
    model.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "float16", "auto"),
        help="float32 is what training measures in",
    )
    references = made.add_argument_group("references")
    references.add_argument(
        "--precomputed-embeddings-path",
        type=Path,
        default=Path("dataset/small-700/song_describer_clap_embeddings.npz"),
        metavar="NPZ",
        help="what precompute_song_describer_clap_embeddings.py wrote",
    )
    references.add_argument(
        "--clap-model-name", metavar="NAME", help="where CLAP is (else as in the file of references)"
    )
    references.add_argument("--clap-batch-size", type=int, default=8, metavar="N", help="windows through CLAP at once")
    references.add_argument("--limit", type=int, metavar="N", help="judge by N prompts, of as many tracks")
    sampling = made.add_argument_group("sampling; as recommended for the model's objective where left out")
    sampling.add_argument("--steps", type=int, metavar="N", help="sampling steps")
    sampling.add_argument("--cfg-scale", type=float, metavar="X", help="guidance")
    sampling.add_argument("--sampler-type", metavar="NAME", help="sampler, such as dpmpp-3m-sde")
    sampling.add_argument("--sigma-min", type=float, metavar="X", help="lowest noise level")
    sampling.add_argument("--sigma-max", type=float, metavar="X", help="highest noise level")
    sampling.add_argument("--seed", type=int, default=0, help="a prompt adds its row to it; -1 draws one")
    sampling.add_argument("--gen-batch-size", type=int, default=4, metavar="N", help="items to generate at once")
    made.add_argument(
        "--output", "-o", type=Path, default=Path("outputs/song_describer"), metavar="DIR", help="folder to write to"
    )
    return made


def run(arguments: argparse.Namespace) -> None:
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.evaluation.report import as_csv
    from stable_audio_tools.evaluation.results import as_table, write_results
    from stable_audio_tools.evaluation.song_describer.checkpoint import judge

    caption_run, subject = prepare(arguments)
    rows = caption_run.references.choose(arguments.limit)
    result = judge(caption_run, rows, subject, arguments.output / "vectors")
    if result is None:
        return  # another process is still at work, and writes
    write_results(arguments.output / "scores.json", [result])
    write_text(arguments.output / "prompts.csv", as_csv(result.details["prompts"]))
    print(as_table([{"checkpoint": subject["name"], **result.scores}]))
    print(f"wrote {arguments.output / 'scores.json'} and prompts.csv", flush=True)


def prepare(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The run that the flags ask for, and what tells the model in its result."""
    from stable_audio_tools.cli.generate import process_device
    from stable_audio_tools.core.seeds import resolve_seed
    from stable_audio_tools.evaluation.embedders.base import digest_of
    from stable_audio_tools.evaluation.song_describer.checkpoint import require_conditional
    from stable_audio_tools.evaluation.song_describer.generating import CaptionRun, sampling_for
    from stable_audio_tools.evaluation.song_describer.references import clap_node, matching_embedder, read_references
    from stable_audio_tools.inference.generation.model import load
    from stable_audio_tools.models.checkpoints import load_into

    check(arguments)
    device = process_device(arguments.device)
    references = read_references(arguments.precomputed_embeddings_path)
    node = clap_node(arguments.clap_model_name) if arguments.clap_model_name else None
    embedder = matching_embedder(references, node, device)
    model = load(arguments.model_config, arguments.ckpt_path, device, precision=arguments.precision)
    require_conditional(model.module, model.facts.model_type)
    if arguments.pretransform_ckpt_path is not None:
        pretransform = required_pretransform(model.module)
        load_into(getattr(pretransform, "model", pretransform), arguments.pretransform_ckpt_path, ema=None)
    sampling = sampling_for(
        model.module,
        arguments.steps,
        arguments.cfg_scale,
        arguments.sampler_type,
        arguments.sigma_min,
        arguments.sigma_max,
        resolve_seed(arguments.seed),
        model.precision,
    )
    subject = {
        "name": str(arguments.ckpt_path),
        "model_config": str(arguments.model_config),
        "weights": digest_of(model.module),
    }
    batches = (arguments.gen_batch_size, arguments.clap_batch_size)
    return CaptionRun(model.module, model.config["sample_size"], references, sampling, embedder, *batches), subject


def required_pretransform(module: Any) -> Any:
    from stable_audio_tools.core.errors import ConfigError

    if getattr(module, "pretransform", None) is None:
        raise ConfigError("--pretransform-ckpt-path was given, but the model has no pretransform")
    return module.pretransform


def check(arguments: argparse.Namespace) -> None:
    """Numbers that cannot be right."""
    from stable_audio_tools.core.errors import ConfigError

    names = ("gen_batch_size", "clap_batch_size", "limit", "steps")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    problems = [
        f"--{name.replace('_', '-')}: expected at least 1, got {value}" for name, value in given.items() if value < 1
    ]
    if arguments.seed < -1:
        problems.append(f"--seed: expected -1 or more, got {arguments.seed}")
    if problems:
        raise ConfigError(problems)


main = command(parser, run)
