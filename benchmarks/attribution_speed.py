"""Cost of attribution features: against the one-by-one loop, by size of projection and number of timesteps; memory.

python benchmarks/attribution_speed.py [--what ratio cost memory projections] [--plot outputs/projections.svg]

Seconds are CPU time of one thread, so that other work on the machine does not count.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stable_audio_tools.attribution.engines import GradientEngine, HookEngine, LoopEngine, VmapEngine
from stable_audio_tools.attribution.projection import make_projection
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask, FeatureRecipe, find_measure
from stable_audio_tools.models.diffusion.objectives import V
from stable_audio_tools.models.dit import DiffusionTransformer

CHANNELS = 16


def make_task(width: int, depth: int, timesteps: int) -> DiffusionTask:
    torch.manual_seed(0)
    network = DiffusionTransformer(io_channels=CHANNELS, embed_dim=width, depth=depth, num_heads=width // 32).eval()
    steps = list(range(0, 1000, 1000 // timesteps))[:timesteps]
    return DiffusionTask(network, V, FeatureRecipe(find_measure("mean-squared-l2-norm"), steps))


def make_samples(count: int, frames: int) -> list[AttributedSample]:
    return [AttributedSample(str(n), torch.randn(CHANNELS, frames), {}, torch.ones(1, frames)) for n in range(count)]


def one_by_one(
    task: DiffusionTask, samples: list[AttributedSample], project: Callable[[Tensor], Tensor] | None
) -> None:
    """As the original scripts do it: every timestep of every sample by itself, with activation checkpointing.

    The gradient is gathered into one flat buffer, which is then projected by a dense matrix of normal entries.
    """
    task.network.transformer.checkpointing = True
    parameters = list(task.network.parameters())
    for sample in samples:
        rows = task.prepare(sample)
        total = torch.zeros(sum(parameter.numel() for parameter in parameters))
        for step in range(len(rows.t)):
            value = task.values(rows.part(step, step + 1)).sum()
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            flat = [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, gradients)]
            total += torch.cat(flat)
        if project is not None:
            project(total / len(rows.t))
    task.network.transformer.checkpointing = False


def seconds(work: Callable[[], object]) -> float:
    work()
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio() -> None:
    """Features by the loop of the original scripts and by the default engine."""
    print(f"{'model':34} {'one by one':>22} {'with dense matrix':>20} {'here':>10} {'ratio':>8}")
    for width, depth, frames, dim in ((64, 4, 32, 1024), (128, 4, 64, 1024), (256, 4, 128, 2048)):
        task, samples = make_task(width, depth, 10), make_samples(2, frames)
        parameters = dict(task.network.named_parameters())
        count = sum(parameter.numel() for parameter in parameters.values())
        dense = make_projection("normal", dim)
        gradients = seconds(lambda: one_by_one(task, samples, None)) / 2  # noqa: B023
        projection = seconds(lambda: dense.project("all", torch.randn(1, count // 16))) * 16  # noqa: B023
        engine = HookEngine(task, parameters, make_projection("sketch", dim))
        ours = seconds(lambda: engine.features(samples)) / 2  # noqa: B023
        name = f"{count / 1e6:.2f} M, {frames} frames, N {dim}"
        whole = gradients + projection
        print(f"{name:34} {gradients:20.2f} s {whole:18.2f} s {ours:8.2f} s {whole / ours:7.1f}", flush=True)
        print(f"{'':34} gradients alone: {gradients / ours:.1f} times", flush=True)


def cost() -> None:
    """Seconds of one sample, by engine, projection, N and K."""
    print(f"{'engine':8} {'projection':12} {'N':>6} {'K':>4} {'s per sample':>14}")
    cases: list[tuple[type[GradientEngine], str, int, int]] = [
        *((LoopEngine, "sketch", 2048, timesteps) for timesteps in (1, 10, 50)),
        *((HookEngine, "sketch", 2048, timesteps) for timesteps in (1, 10, 50)),
        *((HookEngine, "sketch", dim, 10) for dim in (512, 8192)),
        (VmapEngine, "sketch", 2048, 10),
        *((make, kind, 512, 10) for kind in ("rademacher", "normal") for make in (HookEngine, VmapEngine)),
    ]
    for make, kind, dim, timesteps in cases:
        task, samples = make_task(64, 4, timesteps), make_samples(4, 32)
        engine = make(task, dict(task.network.named_parameters()), make_projection(kind, dim))
        taken = seconds(lambda: engine.features(samples)) / len(samples)  # noqa: B023
        print(f"{engine.name:8} {kind:12} {dim:6} {timesteps:4} {taken:14.3f}", flush=True)


def memory() -> None:
    """Largest memory of a process that makes features of one sample, less what the model and one forward pass take."""
    print(f"{'parameters':>12} {'selected':>12} {'engine':>8} {'model and pass':>16} {'features on top':>16}")
    for engine in ("hooks", "loop"):
        for pattern in ("layers.5.", ""):
            words = [sys.executable, __file__, "--measure-memory", engine, pattern]
            print(subprocess.run(words, capture_output=True, text=True, check=True).stdout, end="", flush=True)


def measure_memory(name: str, pattern: str) -> None:
    task, samples = make_task(384, 6, 2), make_samples(1, 64)
    parameters = {key: value for key, value in task.network.named_parameters() if pattern in key}
    make = HookEngine if name == "hooks" else LoopEngine
    engine = make(task, parameters, make_projection("sketch", 2048))
    rows = task.prepare(samples[0])
    before = _peak_of(lambda: task.values(rows).mean())  # holds what a backward pass needs
    after = _peak_of(lambda: engine.features(samples))
    everything = sum(parameter.numel() for parameter in task.network.parameters())
    selected = sum(parameter.numel() for parameter in parameters.values())
    print(f"{everything:12,} {selected:12,} {name:>8} {before:12.0f} MiB {max(0, after - before):12.0f} MiB")


def _peak_of(work: Callable[[], object]) -> float:
    """Largest resident memory while that runs, in MiB; Linux reports and resets it."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def projections(plot: Path | None) -> None:
    """Root mean square error of inner products, relative to the norms, of real gradients."""
    task, samples = make_task(64, 1, 4), make_samples(12, 32)
    loop = LoopEngine(task, dict(task.network.named_parameters()), make_projection("sketch", 8))
    gradients = [loop.gradient(sample) for sample in samples]
    flat = torch.stack([torch.cat([part.flatten() for part in gradient.values()]) for gradient in gradients]).double()
    flat = flat - flat.mean(0)
    names, sizes = list(gradients[0]), [part.shape for part in gradients[0].values()]
    exact = torch.nn.functional.normalize(flat, dim=1)
    wanted = exact @ exact.T
    pairs = torch.triu_indices(len(samples), len(samples), 1)
    found: dict[str, list[float]] = {}
    dims = (128, 256, 512, 1024, 2048, 4096)
    for kind in ("sketch", "rademacher", "normal"):
        for dim in dims if kind == "sketch" else dims[:3]:
            errors = []
            for model_id in range(3):
                projection = make_projection(kind, dim, model_id=model_id)
                parts = exact.split([size.numel() for size in sizes], dim=1)
                rows = sum(projection.project(n, p.view(-1, *s)) for n, p, s in zip(names, parts, sizes))
                errors.append((rows @ rows.T - wanted)[pairs[0], pairs[1]])
            found.setdefault(kind, []).append(float(torch.cat(errors).square().mean().sqrt()))
    print(f"{'N':>6} {'1/sqrt(N)':>10} " + " ".join(f"{kind:>11}" for kind in found))
    for index, dim in enumerate(dims):
        cells = [f"{values[index]:11.4f}" if index < len(values) else " " * 11 for values in found.values()]
        print(f"{dim:6} {dim**-0.5:10.4f} " + " ".join(cells))
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(_chart(dims, found), encoding="utf-8")


def _chart(dims: tuple[int, ...], found: dict[str, list[float]]) -> str:
    """Both axes logarithmic; the grey line is 1 / sqrt(N)."""
    import math

    def place(dim: float, error: float) -> str:
        x = 60 + 520 * math.log2(dim / dims[0]) / math.log2(dims[-1] / dims[0])
        return f"{x:.1f},{20 + 240 * math.log2(0.128 / error) / 4:.1f}"

    def line(values: list[float], colour: str) -> str:
        points = " ".join(place(dim, value) for dim, value in zip(dims, values))
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    colours = dict(zip(found, ("#b5367a", "#2a6fb0", "#2f9e6e")))
    lines = line([dim**-0.5 for dim in dims], "#bbb")
    lines += "".join(line(values, colours[kind]) for kind, values in found.items())
    names = "".join(
        f'<text x="440" y="{40 + 18 * index}" fill="{colour}">{kind}</text>'
        for index, (kind, colour) in enumerate(colours.items())
    )
    ticks = "".join(
        f'<text x="{place(dim, 1).split(",")[0]}" y="282" text-anchor="middle">{dim}</text>' for dim in dims
    )
    ticks += "".join(
        f'<text x="52" y="{float(place(dims[0], value).split(",")[1]) + 4:.0f}" text-anchor="end">{value:g}</text>'
        for value in (0.128, 0.064, 0.032, 0.016, 0.008)
    )
    title = '<text x="320" y="300" text-anchor="middle">numbers of a feature; error of inner products</text>'
    style = "<style>text{font:12px system-ui,sans-serif;fill:#555}</style>"
    back = '<rect width="620" height="310" fill="#fff"/>'
    body = f"{style}{back}{lines}{names}{ticks}{title}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 310" width="620">{body}</svg>\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("ratio", "cost", "memory", "projections")
    parser.add_argument("--what", nargs="+", choices=parts, default=parts, help="which tables")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the errors of projections")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure_memory:
        measure_memory(*arguments.measure_memory)
        return 0
    if "ratio" in arguments.what:
        ratio()
    if "cost" in arguments.what:
        cost()
    if "memory" in arguments.what:
        memory()
    if "projections" in arguments.what:
        projections(arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
