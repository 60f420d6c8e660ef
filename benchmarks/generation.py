"""Speed and drift of sampling: precisions, attention kernels, compiled networks, another checkout of the package.

    python benchmarks/generation.py [--with CHECKOUT]                                two minutes on two cores
    python benchmarks/generation.py --shape open --steps 100 --device cuda --kinds float32 float16 float16+compile \
        [--with CHECKOUT]

A kind is a precision, and after a plus what else differs: float16+compile, bfloat16+sdpa, float16+flash. Every kind
runs in a separate process, in turn, `--rounds` times; ratios are of medians. Weights are drawn by name, so that all
checkouts sample the same model; the drift is the root mean square of the difference from the first kind, relative to
it. With `--memory`, the peak memory of decoding latents in chunks instead.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SHAPES = {
    "small": {"embed_dim": 512, "depth": 8, "num_heads": 8, "frames": 512, "cond": 64, "tokens": 16},
    "open": {"embed_dim": 1536, "depth": 24, "num_heads": 24, "frames": 1024, "cond": 768, "tokens": 128},
}
LATENTS, RATE = 64, 44100


def model_config(shape: dict[str, int]) -> dict[str, Any]:
    """The transformer of Stable Audio Open over ready latents; conditions come as tensors."""
    number = {"type": "number", "config": {"min_val": 0, "max_val": 512}}
    told = ["prompt", "seconds_start", "seconds_total"]
    return {
        "model_type": "diffusion_cond",
        "sample_size": shape["frames"],
        "sample_rate": RATE,
        "audio_channels": LATENTS,
        "model": {
            "io_channels": LATENTS,
            "conditioning": {
                "cond_dim": shape["cond"],
                "configs": [{"id": name, **number} for name in told],
            },
            "diffusion": {
                "type": "dit",
                "cross_attention_cond_ids": told,
                "global_cond_ids": told[1:],
                "config": {
                    **{name: shape[name] for name in ("embed_dim", "depth", "num_heads")},
                    "io_channels": LATENTS,
                    "cond_token_dim": shape["cond"],
                    "global_cond_dim": 2 * shape["cond"],
                    "project_cond_tokens": False,
                    "transformer_type": "continuous_transformer",
                },
            },
        },
    }


def draw_weights(model: Any) -> None:
    """Draw weights of a scale that keeps activations in range, from the name of each tensor."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=rng) * weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                weight.zero_()


def conditions(shape: dict[str, int], device: str) -> dict[str, Any]:
    import torch

    rng = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[Any]:
        drawn = torch.randn(1, count, shape["cond"], generator=rng).to(device)
        return [drawn, torch.ones(1, count, dtype=torch.bool, device=device)]

    return {"prompt": tokens(shape["tokens"]), "seconds_start": tokens(1), "seconds_total": tokens(1)}


def sample(task: dict[str, Any]) -> dict[str, float]:
    """Measure, in a separate process, the seconds of a run after one to warm up."""
    import torch

    from stable_audio_tools.inference.generation import generate_diffusion_cond
    from stable_audio_tools.models import create_model_from_config

    shape, device = SHAPES[task["shape"]], task["device"]
    precision, *more = task["kind"].split("+")
    config = model_config(shape)
    model = create_model_from_config(config)
    draw_weights(model)
    model = model.to(device).eval().requires_grad_(False)
    options: dict[str, Any] = {}
    if precision == "float16":
        model.model.half()
    elif precision == "bfloat16":
        options["precision"] = torch.bfloat16
    for way in more:
        if way == "compile":
            from stable_audio_tools.models.compilation import compile_network

            compile_network(model)
        else:
            from stable_audio_tools.models.transformer import use_attention_backend

            use_attention_backend(way)
    arguments = {"cfg_scale": 6.0, "batch_size": task["batch"], "sample_size": shape["frames"], "seed": 1}
    arguments |= {"device": device, "sampler_type": "dpmpp-3m-sde", "sigma_min": 0.3, "sigma_max": 500, **options}

    def run(steps: int) -> Any:
        made = generate_diffusion_cond(
            model, steps=steps, conditioning_tensors=conditions(shape, device), return_latents=True, **arguments
        )
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return made

    run(2)
    started = time.perf_counter()
    made = run(task["steps"])
    seconds = time.perf_counter() - started
    torch.save(made.float().cpu(), task["output"])
    return {"seconds": seconds}


def decode(task: dict[str, Any]) -> dict[str, float]:
    """Measure, in a separate process, the MiB beyond the model and the audio itself, for so many minutes of latents."""
    import resource

    import torch

    from stable_audio_tools.inference.generation.decoding import decode_latents
    from stable_audio_tools.models.factory import create_pretransform_from_config

    strides, channels = [2, 4, 4, 8, 8], 16
    coder = {"channels": channels, "c_mults": [1, 2, 4, 8, 16], "strides": strides, "latent_dim": LATENTS}
    node = {
        "type": "autoencoder",
        "config": {
            "encoder": {"type": "oobleck", "config": {**coder, "in_channels": 2}},
            "decoder": {"type": "oobleck", "config": {**coder, "out_channels": 2}},
            "latent_dim": LATENTS,
            "downsampling_ratio": 2048,
            "io_channels": 2,
        },
    }
    codec = create_pretransform_from_config(node, RATE)
    frames = round(task["minutes"] * 60 * RATE / 2048)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    with torch.inference_mode():
        decode_latents(codec, torch.randn(1, LATENTS, 8))
        before = peak()
        audio = decode_latents(codec, torch.randn(1, LATENTS, frames), task["chunk"])
    return {"mib": peak() - before - audio.numel() * audio.element_size() / 2**20}


def measure(task: dict[str, Any], checkout: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, str(HERE), "--task", json.dumps(task)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{task}: {done.stderr.strip()[-2000:]}")
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def compare(arguments: argparse.Namespace) -> None:
    import torch

    rows = [(kind, HERE.parents[1]) for kind in arguments.kinds]
    if arguments.other is not None:
        rows += [(kind, arguments.other.resolve()) for kind in arguments.kinds if kind in ("float32", "float16")]
    seconds: list[list[float]] = [[] for _ in rows]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"{folder}/{index}.pt" for index in range(len(rows))]
        for _ in range(arguments.rounds):
            for index, (kind, checkout) in enumerate(rows):
                task = {name: getattr(arguments, name) for name in ("shape", "device", "batch", "steps")}
                found = measure({"do": "sample", "kind": kind, "output": outputs[index], **task}, checkout)
                seconds[index].append(found["seconds"])
        made = [torch.load(path, weights_only=True) for path in outputs]
    first = statistics.median(seconds[0])
    print(f"{'kind':28} {'ms a step':>10} {'times as fast':>14} {'drift':>10}")
    for (kind, checkout), taken, latents in zip(rows, seconds, made):
        median = statistics.median(taken)
        drift = float((latents - made[0]).norm() / made[0].norm())
        name = kind if checkout == HERE.parents[1] else f"{kind}, {checkout.name}"
        print(f"{name:28} {1000 * median / arguments.steps:10.1f} {first / median:14.2f} {drift:10.1e}")


def compare_memory() -> None:
    print(f"{'minutes':>8} {'chunk of frames':>16} {'MiB':>8}")
    for minutes, chunk in ((1, None), (1, 128), (10, 128), (1, 512), (10, 512)):
        found = measure({"do": "decode", "minutes": minutes, "chunk": chunk}, HERE.parents[1])
        print(f"{minutes:8} {chunk or 'whole':>16} {found['mib']:8.0f}", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--with", dest="other", type=Path, metavar="CHECKOUT", help="another checkout of the package")
    made.add_argument("--shape", choices=list(SHAPES), default="small")
    made.add_argument(
        "--kinds", nargs="+", default=["float32", "bfloat16"], help="the first is the measure of the others"
    )
    made.add_argument("--device", default="cpu")
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--steps", type=int, default=8)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--memory", action="store_true", help="measure decoding instead")
    made.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.task is not None:
        print(json.dumps({"sample": sample, "decode": decode}[arguments.task["do"]](arguments.task)))
    elif arguments.memory:
        compare_memory()
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
