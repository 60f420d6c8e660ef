"""Peak memory of generation on a GPU, by model, length, precision and options, as the table of docs/inference.md.

    python benchmarks/memory_table.py [--models "Stable Audio 3"] [--precisions float16 float32]

Needs no GPU: models run at full size on CUDA tensors without contents (`tests/support/fake_cuda.py`). What PyTorch's
allocator and CUDA take on top is not counted. Guidance is on where the model's recommended settings have it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fake_cuda import FakeCuda
from support.hollow_models import GIB, hollow_model, language_model, open_small, watch_steps


class Case(NamedTuple):
    """A model, and what is asked of it."""

    config: str | Callable[[], dict[str, Any]]
    asked: dict[str, Any]


def _clip(seconds: int) -> dict[str, Any]:
    return {"init_audio": (44100, torch.zeros(2, 44100 * seconds))}


_FEW = {"cfg_scale": 1}  # the distilled models of Stable Audio 3 run without guidance
CASES = {
    "Stable Audio Open 1.0, 48 s": Case("stable_audio_open_1_0", {"prompt": "rain"}),
    "the same, 4 items": Case("stable_audio_open_1_0", {"prompt": "rain", "num_samples": 4}),
    "Stable Audio Open Small, 12 s": Case(open_small, {"prompt": "rain"}),
    "Stable Audio 3 small, 114 s": Case("sa3-sm-music", {"prompt": "rain", "seconds_total": 114, **_FEW}),
    "Stable Audio 3 medium, 120 s": Case("sa3-medium", {"prompt": "rain", "seconds_total": 120, **_FEW}),
    "Stable Audio 3 medium, 380 s": Case("sa3-medium", {"prompt": "rain", "seconds_total": 380, **_FEW}),
    "autoencoder of Stable Audio 2.0, 30 s": Case("stable_audio_2_0_vae", _clip(30)),
    "autoencoder SAME of Stable Audio 3 medium, 30 s": Case("same-l", _clip(30)),
    "language model of 0.3 billion values, 0.5 s": Case(language_model, {"sound": "rain", "seconds": 0.5}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "`decode_frames=256`": {"decode_frames": 256},
    "`offload`": {"offload": True},
    "both": {"offload": True, "decode_frames": 256},
}


class Run(NamedTuple):
    """What one generation did to the device."""

    peak: float  # GiB
    calls: int | None  # of kernels, in a step of the sampler
    waits: int | None


def generate(case: Case, precision: str, offload: bool = False, **options: Any) -> Run:
    """Generate once, with two steps of a sampler."""
    config = case.config if isinstance(case.config, str) else case.config()
    with FakeCuda() as gpu:
        model = hollow_model(config, gpu, precision, offload=offload)
        watched, calls = watch_steps(gpu), []
        if model.facts.objective is not None:

            def callback(state: dict[str, Any]) -> None:
                calls.append(sum(gpu.calls.values()))
                watched.callback(state)

            options |= {"steps": 2, "callback": callback}
        model.generate(**case.asked, **options, seed=1, progress=False)
        if not calls:
            return Run(gpu.peak_bytes / GIB, None, None)
        return Run(gpu.peak_bytes / GIB, calls[1] - calls[0], watched.steps[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="", help="only those whose name contains this")
    parser.add_argument("--precisions", nargs="+", default=["float32", "float16", "bfloat16"])
    arguments = parser.parse_args()
    columns = " | ".join(OPTIONS)
    print(f"| model | precision | {columns} | calls of a step | waits |\n|---|---|{'---|' * (len(OPTIONS) + 2)}")
    for title, case in CASES.items():
        if arguments.models not in title:
            continue
        for number, precision in enumerate(arguments.precisions):
            first = generate(case, precision)
            is_diffusion = first.calls is not None
            others = [generate(case, precision, **chosen) for chosen in [*OPTIONS.values()][1:] if is_diffusion]
            peaks = [f"{run.peak:.1f}" for run in (first, *others)] + [""] * (0 if is_diffusion else 3)
            counts = [str(first.calls), str(first.waits)] if is_diffusion else ["", ""]
            print(f"| {'' if number else title} | {precision} | {' | '.join((*peaks, *counts))} |", flush=True)


if __name__ == "__main__":
    main()
