"""Speed, utilisation and memory of training on a GPU, in one run that begins nothing after six minutes.

    python benchmarks/gpu_training.py [--json gpu_training.json] [--seconds 360] [--batch 8]

The transformer of Stable Audio Open 1.0 (1.06 billion parameters, random weights) on 1024 latents: forward and backward
pass, clipping, a fused AdamW step and the weight average, by precision, with recomputed activations, compiled and not.
Utilisation is the share of the device's peak that the operations of the model need; recomputing adds none to them.

On a CPU a narrow model takes the place of the large one. `--fake` runs the large one on CUDA tensors without contents,
which shows waits and kernels of the forward pass and of the steps after the backward pass, but no speed.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from gpu import Bench
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fake_cuda import FakeCuda

from stable_audio_tools.models.compilation import compile_network
from stable_audio_tools.models.diffusion.objectives import V
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.transformer.continuous import recomputing_modules
from stable_audio_tools.training.callbacks.telemetry import peak_operations
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.gradients import clip_gradients

LATENTS, TOKENS = 64, 130
ROUNDS = 5


class Shape(NamedTuple):
    """The size of the network and of its batches."""

    dim: int = 1536
    depth: int = 24
    heads: int = 24
    cond: int = 768
    frames: int = 1024
    batch: int = 8


class Kind(NamedTuple):
    """One way to train the same network."""

    precision: str = "bf16-mixed"
    recomputes: bool = False
    compiles: bool = False

    @property
    def name(self) -> str:
        ways = ("recomputed", self.recomputes), ("compiled", self.compiles)
        return " ".join([self.precision, *(way for way, is_on in ways if is_on)])


KINDS = (Kind(), Kind(compiles=True), Kind(recomputes=True), Kind(recomputes=True, compiles=True), Kind("32-true"))


def build(shape: Shape) -> DiffusionTransformer:
    """Build the network of Stable Audio Open, or a narrow one of the same kind."""
    torch.manual_seed(0)
    return DiffusionTransformer(
        io_channels=LATENTS,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=shape.heads,
        cond_token_dim=shape.cond,
        global_cond_dim=2 * shape.cond,
        project_cond_tokens=False,
    )


class Training:
    """Steps of a network on random latents and conditions."""

    def __init__(self, network: nn.Module, shape: Shape, kind: Kind, device: torch.device) -> None:
        self.network, self.device = network, device
        self.average = WeightAverage(network)
        self.is_mixed = kind.precision == "bf16-mixed"
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
        self.clean = torch.randn(shape.batch, LATENTS, shape.frames, device=device)
        self.tokens = torch.randn(shape.batch, TOKENS, shape.cond, device=device)
        self.about = torch.randn(shape.batch, 2 * shape.cond, device=device)

    def loss(self) -> Tensor:
        """Return the loss of one batch."""
        t = torch.rand(len(self.clean), device=self.device)
        noisy, target = V.corrupt(self.clean, torch.randn_like(self.clean), t)
        with torch.autocast(self.device.type, torch.bfloat16) if self.is_mixed else nullcontext():
            output = self.network(noisy, t, cross_attn_cond=self.tokens, global_embed=self.about)
        return (output.float() - target).square().mean()

    def follow(self) -> None:
        """Change the weights by their gradients, and the average by the weights."""
        clip_gradients(list(self.network.parameters()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()

    def step(self) -> None:
        self.loss().backward()
        self.follow()


def operations(shape: Shape) -> int:
    """Count the operations of the forward and backward pass of one batch, on tensors without contents."""
    with torch.device("meta"):
        training = Training(build(shape), shape, Kind("32-true"), torch.device("meta"))
        with FlopCounterMode(display=False) as counter:
            training.loss().backward()
    return int(counter.get_total_flops())


def measure(bench: Bench, shape: Shape, kind: Kind) -> dict[str, float]:
    """Return seconds of a step, latents per second and utilisation."""
    with bench.device:
        network = build(shape)
    for module in recomputing_modules(network):
        module.checkpointing = kind.recomputes  # type: ignore[assignment]
    if kind.compiles:
        compile_network(network)
    training = Training(network, shape, kind, bench.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    begin = time.perf_counter()
    bench.timed(training.step)  # compiles, and lets the allocator settle
    settled = time.perf_counter() - begin
    seconds = statistics.median(bench.timed(training.step) for _ in range(ROUNDS))
    row = {
        "step s": seconds,
        "latents/s": shape.batch * shape.frames / seconds,
        "gigaflops": operations(shape) / seconds / 1e9,
        "first steps s": settled,
    }
    peak = peak_operations(bench.device, kind.precision)
    return row if peak is None else {**row, "utilisation %": 100 * row["gigaflops"] * 1e9 / peak}


def on_fake_tensors(shape: Shape) -> dict[str, float]:
    """Return waits and kernels of the second step on tensors without contents; its gradients are zeros."""
    with FakeCuda() as gpu, torch.device("cuda"):
        training = Training(build(shape), shape, Kind(), torch.device("cuda"))
        for _ in range(2):
            gpu.restart()
            training.loss()
            for parameter in training.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            training.follow()
        return {
            "waits": sum(gpu.waits.values()),
            "kernels": sum(gpu.calls.values()),
            "peak GiB": gpu.peak_bytes / 2**30,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu_training.json"), help="file for the figures")
    parser.add_argument("--seconds", type=float, default=360, help="begin nothing after so many seconds")
    parser.add_argument("--batch", type=int, default=8, help="items of a step on a GPU")
    parser.add_argument("--fake", action="store_true", help="run on CUDA tensors without contents")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not arguments.fake
    bench = Bench(torch.device("cuda" if on_gpu else "cpu"), arguments.seconds)
    shape = Shape(batch=arguments.batch)
    if arguments.fake:
        bench.measure("large transformer, fake tensors", lambda: on_fake_tensors(shape))
        bench.left_out["speed, utilisation, backward pass"] = "needs an NVIDIA GPU"
    elif on_gpu:
        for kind in KINDS:
            bench.measure(kind.name, lambda kind=kind: measure(bench, shape, kind))
    else:
        narrow = Shape(dim=128, depth=2, heads=2, cond=64, frames=32, batch=2)
        for kind in KINDS:
            if not kind.compiles:
                bench.measure(f"narrow {kind.name}", lambda kind=kind: measure(bench, narrow, kind))
        bench.left_out["large transformer, compiled steps, utilisation, memory"] = "needs an NVIDIA GPU"
    for row, why in bench.left_out.items():
        print(f"{row:48}not measured: {why}")
    device = torch.cuda.get_device_name() if on_gpu else "CUDA without contents" if arguments.fake else "CPU"
    figures = {"device": device, "torch": torch.__version__, "rows": bench.rows, "not measured": bench.left_out}
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
