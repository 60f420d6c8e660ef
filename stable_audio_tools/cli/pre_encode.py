"""`pre-encode`: a dataset of audio to a dataset of latents."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from stable_audio_tools.cli.command import make_parser, run_command


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "pre_encode.py",
        "Encode every item of a dataset once, so that training on latents needs no autoencoder at work. What is there "
        "already is kept, so a run that was killed goes on when started again, also with other numbers of processes. "
        "Uses all GPUs of the machine; on several nodes use torchrun, or --num-nodes with NODE_RANK set on each.",
    )
    made.add_argument("--dataset-config", required=True, metavar="JSON", help="dataset of audio")
    made.add_argument("--output-path", required=True, metavar="DIR", help="folder to write to")
    model = made.add_argument_group("autoencoder")
    model.add_argument("--model-config", metavar="JSON", help="config of the autoencoder, or of a model that holds one")
    model.add_argument("--ckpt-path", metavar="FILE", help="its weights; training checkpoints will do")
    model.add_argument("--pretrained-name", metavar="NAME", help="a model on huggingface.co, or a folder, instead")
    model.add_argument("--model-half", action="store_true", help="encode, and keep latents, in float16")
    model.add_argument("--is-discrete", action="store_true", help="write the codes of a discrete autoencoder")
    model.add_argument(
        "--deterministic",
        action="store_true",
        help="write the mean of what a variational autoencoder would draw, instead of a draw",
    )
    work = made.add_argument_group("work")
    work.add_argument("--batch-size", type=int, default=1, metavar="N", help="items through the network at once")
    work.add_argument("--sample-size", type=int, default=1_320_960, metavar="N", help="samples to pad or crop to")
    work.add_argument("--limit", type=int, metavar="N", help="encode the first N items only")
    work.add_argument("--limit-batches", type=int, metavar="N", help="encode N batches of each process only")
    work.add_argument("--shuffle", action="store_true", help="in a random order instead of that of the files")
    work.add_argument("--seed", type=int, default=0, help="of crops, of the order, and of what is drawn")
    work.add_argument("--chunked", action="store_true", help="encode in overlapping chunks, for long items")
    work.add_argument("--chunk-size", type=int, default=128, metavar="FRAMES", help="length of a chunk")
    work.add_argument("--overlap", type=int, default=32, metavar="FRAMES", help="frames that neighbours share")
    machine = made.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, mps, or the best there is")
    machine.add_argument("--num-workers", type=int, default=4, metavar="N", help="processes that read audio, each")
    machine.add_argument("--num-nodes", type=int, default=1, metavar="N", help="machines that work together")
    machine.add_argument(
        "--strategy", default="auto", metavar="NAME", help="a process for each GPU (auto, ddp); 'single': only one"
    )
    return made


def run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from stable_audio_tools.latents.encoding import PreEncodeSettings, encode_dataset

    check(arguments)
    processes = _processes(arguments)
    if processes > 1 or (arguments.num_nodes > 1 and "WORLD_SIZE" not in os.environ):
        return launch(argv, processes, arguments.num_nodes)
    options = {key: value for key, value in vars(arguments).items() if key not in ("num_nodes", "strategy")}
    done = encode_dataset(PreEncodeSettings(**options))
    print(f"{arguments.output_path}: {done.encoded} encoded, {done.kept} kept, {done.left_out} left out", flush=True)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Numbers that cannot be right."""
    from stable_audio_tools.core.errors import ConfigError

    least = {
        "batch_size": 1,
        "sample_size": 1,
        "num_workers": 0,
        "num_nodes": 1,
        "chunk_size": 1,
        "overlap": 0,
        "seed": 0,
    }
    limits = {name: 1 for name in ("limit", "limit_batches") if getattr(arguments, name) is not None}
    problems = [
        f"--{name.replace('_', '-')}: expected at least {bound}, got {getattr(arguments, name)}"
        for name, bound in {**least, **limits}.items()
        if getattr(arguments, name) < bound
    ]
    if problems:
        raise ConfigError(problems)


def _processes(arguments: argparse.Namespace) -> int:
    """How many to start on this machine; 1 when a launcher has done so, or one is enough."""
    import torch

    launched = "WORLD_SIZE" in os.environ or "SLURM_NTASKS" in os.environ
    if launched or arguments.strategy == "single" or arguments.device not in ("auto", "cuda"):
        return 1
    return max(1, torch.cuda.device_count())


def launch(argv: Sequence[str], processes: int, nodes: int) -> int:
    """Start this command again, once for each GPU -> the worst exit status."""
    first = int(os.environ.get("NODE_RANK", 0)) * processes
    children = []
    for local in range(processes):
        place = {"RANK": first + local, "LOCAL_RANK": local, "WORLD_SIZE": processes * nodes}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}}
        words = [sys.executable, "-m", "stable_audio_tools.cli.main", "pre-encode", *argv]
        children.append(subprocess.Popen(words, env=environment))
    try:
        return max(abs(child.wait()) for child in children)
    finally:
        for child in children:
            child.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(parser, lambda arguments: run(arguments, words), words)
