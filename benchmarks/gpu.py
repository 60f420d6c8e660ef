"""Speed and memory of generation on a GPU, in one run that begins nothing after seven minutes.

    python benchmarks/gpu.py [--json gpu.json] [--seconds 420]

Stable Audio Open 1.0 with random weights: 47 s of stereo in 100 guided steps, by precision, compiled and not, decoding,
offloading; then a language model by batch. A measurement that would begin after `--seconds` is left out, and named.
On a CPU a narrow model takes the place of the large one, and what a CPU cannot show is named, too.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.small_models import CONFIGS, narrowed

from stable_audio_tools.core.config import load
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.models import create_model_from_config

GIB = 2**30
KINDS = (
    "float32",
    "float32+tf32",
    "float16",
    "bfloat16",
    "float16+compile",
    "float16+reduce-overhead",
    "float16+offload",
)


class Bench:
    """Measurements by name, until the time is up."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device = device
        self.end = time.monotonic() + seconds
        self.rows: dict[str, dict[str, float]] = {}
        self.left_out: dict[str, str] = {}

    def measure(self, name: str, run: Callable[[], dict[str, float]]) -> None:
        """Record what `run` returns, or why it was not run."""
        if time.monotonic() > self.end:
            self.left_out[name] = "the time was up"
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            row = run()
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            self.left_out[name] = str(error).splitlines()[0]
            return
        if self.device.type == "cuda":
            row["peak GiB"] = torch.cuda.max_memory_allocated() / GIB
        self.rows[name] = row
        print(f"{name:48}" + "".join(f"{key} {value:8.3f}   " for key, value in row.items()), flush=True)

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds of the second of two runs; the first one compiles and warms up."""
        run()
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def diffusion(bench: Bench, config: dict[str, Any], steps: int, kind: str) -> dict[str, float]:
    """Seconds of sampling and of decoding."""
    precision, _, option = kind.partition("+")
    model = AudioModel(_random(config), config, bench.device, precision, offload=option == "offload")
    if option in ("compile", "reduce-overhead"):
        model.compile(**({} if option == "compile" else {"mode": option}))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = option == "tf32"
    conditioning = {
        id: (torch.randn(1, 128 if "prompt" in id else 1, width, device=bench.device), None)
        for id, width in _widths(config).items()
    }
    times: dict[str, float] = {}
    usual = model.facts.recommended
    assert usual is not None

    def run() -> None:
        start = time.perf_counter()

        def sampled(_: torch.Tensor) -> None:
            bench._wait()
            times["sampling s"] = time.perf_counter() - start

        generate_diffusion_cond(
            model.module,
            steps=steps,
            cfg_scale=7.0,
            conditioning_tensors=conditioning,
            sample_size=config["sample_size"],
            seed=1,
            device=bench.device,
            sampler_type=usual.sampler_type,
            sigma_min=usual.sigma_min,
            sigma_max=usual.sigma_max,
            progress=False,
            on_latents=sampled,
            allow_tf32=option == "tf32",
            offload=option == "offload",
        )

    total = bench.timed(run)
    return {**times, "decoding s": total - times["sampling s"]}


def language(bench: Bench, config: dict[str, Any], precision: str, items: int) -> dict[str, float]:
    """Seconds of audio per second, over all items."""
    model = AudioModel(_random(config), config, bench.device, precision)
    seconds = min(1.0, model.facts.window_seconds)
    asked = {"sound": "rain", "seconds": seconds, "num_samples": items, "seed": 1, "progress": False}
    return {"audio s per s": items * seconds / bench.timed(lambda: model.generate(**asked))}


def _random(config: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model_from_config(copy.deepcopy(config)).eval()


def _widths(config: dict[str, Any]) -> dict[str, int]:
    conditioning = config["model"]["conditioning"]
    return {part["id"]: part["config"].get("output_dim", conditioning["cond_dim"]) for part in conditioning["configs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file for the figures")
    parser.add_argument("--seconds", type=float, default=420, help="begin nothing after so many seconds")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    bench = Bench(device, arguments.seconds)
    name = "stable_audio_open_1_0" if on_gpu else "tiny_diffusion_cond"
    config = load(next(CONFIGS.rglob(f"{name}.json")))
    config = config if on_gpu else narrowed(config)
    kinds = KINDS if on_gpu else ("float32", "bfloat16")
    for kind in KINDS:
        if kind in kinds:
            bench.measure(f"{name} {kind}", lambda kind=kind: diffusion(bench, config, 100 if on_gpu else 4, kind))
        else:
            bench.left_out[f"{name} {kind}"] = "needs an NVIDIA GPU"
    tokens = load(next(CONFIGS.rglob("tiny_lm.json")))
    tokens = tokens if on_gpu else narrowed(tokens)
    for precision in ("float32", "bfloat16"):
        for items in (1, 8):
            row = f"tiny_lm {precision}, {items} items"
            bench.measure(row, lambda p=precision, n=items: language(bench, tokens, p, n))
    for row, why in bench.left_out.items():
        print(f"{row:48}not measured: {why}")
    about = torch.cuda.get_device_name() if on_gpu else "CPU"
    figures = {"device": about, "torch": torch.__version__, "rows": bench.rows, "not measured": bench.left_out}
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
