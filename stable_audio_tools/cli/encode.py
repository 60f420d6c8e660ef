"""`data encode`: a dataset of audio to a dataset of latents. `data encode-text`: texts to a file of encodings."""

import os
import subprocess
import sys
from collections.abc import Sequence

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.settings import flags_from
from stable_audio_tools.core import ranks
from stable_audio_tools.latents.settings import EncodeTextSettings, PreEncodeSettings


def run(settings: PreEncodeSettings) -> int:
    from stable_audio_tools.latents.encoding import encode_dataset

    processes = _count_processes(settings)
    if processes > 1 or (settings.num_nodes > 1 and "WORLD_SIZE" not in os.environ):
        return launch(flags_from(settings), processes, settings.num_nodes)
    done = encode_dataset(settings)
    print(f"{settings.output_path}: {done.encoded} encoded, {done.kept} kept, {done.left_out} left out", flush=True)
    return 0


def _count_processes(settings: PreEncodeSettings) -> int:
    """How many to start on this machine; 1 when a launcher has done so, or one is enough."""
    import torch

    launched = ranks.launch().by != "none"
    if launched or settings.strategy == "single" or settings.device not in ("auto", "cuda"):
        return 1
    return max(1, torch.cuda.device_count())


def launch(flags: Sequence[str], processes: int, nodes: int) -> int:
    """Start this command again, once for each GPU -> the worst exit status."""
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


main = Command(
    PreEncodeSettings,
    run,
    "Encode every item of a dataset once, so that training on latents needs no autoencoder at work. What is there "
    "already is kept, so a run that was killed goes on when started again, also with other numbers of processes. "
    "Uses all GPUs of the machine; on several nodes use torchrun, or --num-nodes with NODE_RANK set on each.",
)


def run_text(settings: EncodeTextSettings) -> None:
    from stable_audio_tools.latents.text import encode_to_file

    encodings = encode_to_file(settings)
    longest = max(len(tensor) if tensor.ndim == 2 else 1 for tensor in encodings.values())
    width = next(iter(encodings.values())).shape[-1]
    print(f"{settings.output}: {len(encodings)} encodings, dim {width}, max_length {longest}")


encode_text = Command(
    EncodeTextSettings,
    run_text,
    "Encode texts once with T5 or CLAP, or take over a pickle of encodings, into a safetensors file that the "
    "conditioner 'precomputed' reads.",
)
