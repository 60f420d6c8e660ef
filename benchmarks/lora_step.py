"""Time and memory of a training step with adapters, against the frozen base alone and against full fine-tuning.

The model is the transformer of a Stable Audio Open config, narrowed by flags. "base" is forward and backward through
the frozen transformer to its input; the others end with an AdamW step. One step of each kind is timed in turn, and
ratios are medians of ratios. On a CPU the time of the processor counts, which other programs change little; let malloc
keep its memory there, as GPUs do: MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592.

    python benchmarks/lora_step.py --device cuda --dim 1536 --depth 24 --frames 1024 --batch 4 --autocast bf16
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.lora import LoraConfig, attach_lora

TYPES = ("lora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LATENTS, TOKENS, COND = 64, 130, 768


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dim", type=int, default=768)
    made.add_argument("--depth", type=int, default=4)
    made.add_argument("--heads", type=int, default=12)
    made.add_argument("--frames", type=int, default=512)
    made.add_argument("--batch", type=int, default=2)
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--base", choices=list(DTYPES), default="fp32", help="type of the frozen weights")
    made.add_argument("--autocast", choices=list(DTYPES), help="mixed precision")
    made.add_argument("--compile", action="store_true", help="torch.compile each model")
    made.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    return made.parse_args()


def build(options: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    model = DiffusionTransformer(
        io_channels=LATENTS,
        embed_dim=options.dim,
        depth=options.depth,
        num_heads=options.heads,
        cond_token_dim=COND,
        global_cond_dim=2 * COND,
        project_cond_tokens=False,
        zero_init_branch_outputs=False,
    )
    return model.to(options.device)


class Step:
    """One kind of training step."""

    def __init__(self, options: argparse.Namespace, model: nn.Module, trained: list[nn.Parameter]) -> None:
        self.device, self.model = torch.device(options.device), model
        self.call: Callable[..., Tensor] = torch.compile(model) if options.compile else model
        self.autocast = DTYPES[options.autocast] if options.autocast else None
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        size = (options.batch, LATENTS, options.frames)
        dtype = next(model.parameters()).dtype
        place = {"device": self.device, "dtype": dtype}
        self.x = torch.randn(size, **place, requires_grad=not trained)
        self.t = torch.rand(options.batch, **place)
        self.tokens = torch.randn(options.batch, TOKENS, COND, **place)
        self.globals = torch.randn(options.batch, 2 * COND, **place)

    def __call__(self) -> None:
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            out = self.call(self.x, self.t, cross_attn_cond=self.tokens, global_embed=self.globals)
        out.float().square().mean().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.x.grad = None

    def seconds(self) -> float:
        self._wait()
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        start = clock()
        self()
        self._wait()
        return clock() - start

    def peak(self) -> float:
        """GiB of the device at the height of a step, with this model alone on it."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self()
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make(kind: str, options: argparse.Namespace, base: nn.Module) -> Step:
    model = copy.deepcopy(base)
    if kind == "full":
        return Step(options, model, list(model.parameters()))
    model.requires_grad_(False)
    if kind == "base":
        return Step(options, model.to(DTYPES[options.base]), [])
    adapter = attach_lora(model, LoraConfig(adapter_type=kind, rank=options.rank, base_precision=options.base), seed=0)
    return Step(options, model, list(adapter.parameters()))


def main() -> None:
    options = arguments()
    base = build(options).cpu()
    kinds = ["base", "full", *options.types]
    on_gpu = torch.device(options.device).type == "cuda"
    steps, peaks = {}, {}
    for kind in kinds:
        step = make(kind, options, copy.deepcopy(base).to(options.device))
        step(), step()
        if on_gpu:
            others = sum(p.numel() * p.element_size() for s in steps.values() for p in s.model.parameters()) / 2**30
            peaks[kind] = step.peak() - others
            peaks[kind] -= sum(_optimizer_bytes(s) for s in steps.values()) / 2**30
        steps[kind] = step
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            times[kind].append(steps[kind].seconds())
    print(f"{sum(p.numel() for p in base.parameters()) / 1e6:.0f} M parameters, {vars(options)}")
    for kind in kinds:
        ratio = statistics.median(own / frozen for own, frozen in zip(times[kind], times["base"]))
        full = statistics.median(own / other for own, other in zip(times[kind], times["full"]))
        memory = f", peak {peaks[kind]:.2f} GiB, {peaks[kind] / peaks['full']:.2f} x full" if on_gpu else ""
        seconds = statistics.median(times[kind])
        print(f"{kind:14} {seconds * 1000:8.1f} ms  {ratio:5.3f} x base  {full:5.3f} x full{memory}")


def _optimizer_bytes(step: Step) -> int:
    if step.optimizer is None:
        return 0
    states = step.optimizer.state.values()
    return sum(v.numel() * v.element_size() for state in states for v in state.values() if isinstance(v, Tensor))


if __name__ == "__main__":
    main()
