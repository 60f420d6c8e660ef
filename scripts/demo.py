"""The whole way from clips to generated audio, on a CPU in minutes: python scripts/demo.py

Each step is a command that can be typed by hand, and together they are the quick start of the README. The figures at
the end are checked, so this is also the end-to-end test.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from demo_figures import Figure, measure
from demo_page import write_page

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs/demo")
TRAIN = "python train.py --config-file example/train.ini"


class Step(NamedTuple):
    section: str  # of the page
    title: str
    command: str


class Done(NamedTuple):
    step: Step
    seconds: float


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--vae-steps", type=int, default=1000, help="training steps of the autoencoder")
    made.add_argument("--dit-steps", type=int, default=400, help="training steps of the diffusion transformer")
    made.add_argument("--list", action="store_true", help="print the commands and stop")
    made.add_argument("--page", action="store_true", help="measure and write the page again, from what is there")
    return made


def plan(vae_steps: int, dit_steps: int) -> list[Step]:
    """The commands, in order."""
    vae, weights = "example/models/vae.json", f"{OUT}/vae.safetensors"
    encode = f"python scripts/pre_encode.py --model-config {vae} --ckpt-path {weights}"
    shape = "--sample-size 65536 --num-workers 0"
    steps = [
        ("clips", "Make clips", "python scripts/make_example_dataset.py example/clips"),
        (
            "clips",
            "Make others to validate on",
            "python scripts/make_example_dataset.py example/held_out --per-class 2 --seed 1",
        ),
        ("clips", "Check the configs", f"stable-audio-tools check {vae} example/clips.json"),
        ("clips", "Check the data", "stable-audio-tools data check example/clips.json --against example/held_out.json"),
        (
            "vae",
            "Train an autoencoder",
            f"{TRAIN} --name vae --model-config {vae} --dataset-config example/clips.json --batch-size 4 "
            f"--max-steps {vae_steps}",
        ),
        (
            "vae",
            "Take the model out of its checkpoint",
            f"python unwrap_model.py --ckpt-path {OUT}/runs/vae --name {OUT}/vae --use-safetensors",
        ),
        (
            "vae",
            "Listen to clips that it has not seen",
            f"python reconstruct_audios.py --model-config {vae} --ckpt-path {weights} --audio-dir example/held_out "
            f"--output-dir {OUT}/reconstructed",
        ),
        (
            "dit",
            "Encode the clips",
            f"{encode} --dataset-config example/clips.json --output-path {OUT}/latents {shape}",
        ),
        (
            "dit",
            "Encode the others",
            f"{encode} --dataset-config example/held_out.json --output-path {OUT}/held_out_latents {shape}",
        ),
        (
            "dit",
            "Train a diffusion transformer on the latents",
            f"{TRAIN} --name dit --model-config example/models/dit.json --dataset-config example/latents.json "
            f"--val-dataset-config example/held_out_latents.json --pretransform-ckpt-path {weights} --batch-size 8 "
            f"--max-steps {dit_steps} --val-every {max(1, dit_steps // 10)}",
        ),
        (
            "dit",
            "Take the model out of its checkpoint",
            f"python unwrap_model.py --ckpt-path {OUT}/runs/dit --name {OUT}/dit --use-safetensors",
        ),
        (
            "generated",
            "Generate",
            f"python generate.py --model-config example/models/dit.json --ckpt-path {OUT}/dit.safetensors "
            f"--cond-yaml-path example/generation/demo_prompts.yaml --output-dir {OUT}/generated "
            "--n-sample-per-cond 2 --sample-steps 30 --cfg-scale 3 --seed 1 --clip-length 3",
        ),
    ]
    return [Step(*step) for step in steps]


def run(step: Step, number: int) -> Done:
    """One command; its failure ends the demo with its output."""
    print(f"[{number}] {step.title}\n    {step.command}", flush=True)
    program, *words = shlex.split(step.command)
    start = [sys.executable, "-m", "stable_audio_tools.cli.main"] if program != "python" else [sys.executable]
    log = ROOT / OUT / "logs" / f"{number:02d}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("w") as stream:
        status = subprocess.run([*start, *words], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode
    if status:
        sys.exit(f"step {number} failed with status {status}; its output ({log}):\n{log.read_text()[-4000:]}")
    seconds = time.perf_counter() - began
    print(f"    done in {seconds:.0f} s", flush=True)
    return Done(step, seconds)


def judge(figures: list[Figure]) -> int:
    """Print each figure beside its bound -> 1 if one misses it."""
    for figure in figures:
        print(f"{'ok ' if figure.met else 'BAD'} {figure.text}")
    return 0 if all(figure.met for figure in figures) else 1


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    steps = plan(arguments.vae_steps, arguments.dit_steps)
    if arguments.list:
        print("\n".join(step.command for step in steps))
        return 0
    if arguments.page:
        done = [Done(step, 0.0) for step in steps]
    else:
        shutil.rmtree(ROOT / OUT, ignore_errors=True)
        done = [run(step, number) for number, step in enumerate(steps, 1)]
    print("measuring", flush=True)
    figures = measure(ROOT)
    page = write_page(ROOT, done, figures)
    status = judge(figures)
    print(f"\nopen {page}")
    return status


if __name__ == "__main__":
    sys.exit(main())
