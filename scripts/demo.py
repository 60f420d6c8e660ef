"""The whole way from clips to generated audio, on a CPU in minutes: python scripts/demo.py [--out outputs/demo]

Each step is a command that can be typed by hand; the page at the end shows them beside what they made.
"""

import argparse
import csv
import html
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import soundfile as sf
import torch

from stable_audio_tools.config import load, save
from stable_audio_tools.data.pictures import spectrogram_image

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "stable_audio_tools" / "configs" / "model_configs"
VAE_CONFIG = CONFIGS / "autoencoders" / "tiny_autoencoder.json"
DIT_CONFIG = CONFIGS / "txt2audio" / "tiny_diffusion_cond.json"


class Demo:
    """Runs commands and keeps what each made."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.steps: list[tuple[str, str, float]] = []

    @property
    def clips(self) -> Path:
        return self.out / "clips"

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    def train(self, title: str, name: str, model: Path, dataset: Path, steps: int, *more: str | Path) -> None:
        """One run of train.py."""
        files = ["--name", name, "--model-config", model, "--dataset-config", dataset, "--max-steps", str(steps)]
        shared = ["--save-dir", self.runs, "--logger", "csv", "--log-every", "5", "--num-workers", "0"]
        self.run(title, "train.py", *files, *shared, *more)

    def run(self, title: str, *words: str | Path) -> None:
        """One command; its failure ends the demo with its output."""
        command = [str(word) for word in words]
        shown = shlex.join(["python", *(_short(word) for word in command)])
        print(f"[{len(self.steps) + 1}] {title}\n    {shown}", flush=True)
        start = time.perf_counter()
        log = self.out / "logs" / f"{len(self.steps) + 1:02d}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stream:
            status = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        if status.returncode:
            sys.exit(f"step failed with status {status.returncode}; its output ({log}):\n{log.read_text()[-4000:]}")
        self.steps.append((title, shown, time.perf_counter() - start))
        print(f"    done in {self.steps[-1][2]:.0f} s", flush=True)


def _short(word: str) -> str:
    return word.removeprefix(f"{ROOT}/")


def newest_checkpoint(runs: Path, name: str) -> Path:
    return max((runs / name).glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)


def metrics_of(checkpoint: Path) -> Path:
    return checkpoint.parents[1] / "metrics" / "metrics.csv"


def curve(path: Path, key: str) -> list[tuple[int, float]]:
    """A logged value by step."""
    with path.open() as stream:
        return [(int(row["step"]), float(row[key])) for row in csv.DictReader(stream) if row.get(key)]


def falls(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Means of the first and of the last fifth."""
    values = [value for _, value in points]
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "demo", help="folder to write to")
    parser.add_argument("--vae-steps", type=int, default=200, help="training steps of the autoencoder")
    parser.add_argument("--dit-steps", type=int, default=300, help="training steps of the diffusion transformer")
    arguments = parser.parse_args()
    demo = Demo(arguments.out.resolve())
    prepare(demo)
    vae = train_autoencoder(demo, arguments.vae_steps)
    dit = train_transformer(demo, arguments.dit_steps)
    listen(demo)
    curves = {
        "autoencoder: spectral distance": curve(metrics_of(vae), "train/mrstft_loss"),
        "transformer: squared error": curve(metrics_of(dit), "train/loss"),
    }
    write_page(demo, curves)
    print(f"\nopen {demo.out / 'index.html'}")
    return judge(curves)


def prepare(demo: Demo) -> None:
    """Clips, and a look at them."""
    dataset = demo.out / "clips.json"
    demo.run("Make the clips", "scripts/make_example_dataset.py", demo.clips)
    save({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": str(demo.clips)}]}, dataset)
    demo.run("Check configs", "-m", "stable_audio_tools.cli.main", "check", VAE_CONFIG, dataset)
    demo.run("Check the data", "scripts/check_dataset.py", dataset)


def train_autoencoder(demo: Demo, steps: int) -> Path:
    """-> the training checkpoint; the weights go to vae.safetensors"""
    demo.train("Train an autoencoder", "vae", VAE_CONFIG, demo.out / "clips.json", steps, "--batch-size", "8")
    checkpoint = newest_checkpoint(demo.runs, "vae")
    demo.run("Unwrap it", "unwrap_model.py", "--ckpt-path", checkpoint, "--name", demo.out / "vae", "--use-safetensors")
    return checkpoint


def train_transformer(demo: Demo, steps: int) -> Path:
    """-> the training checkpoint; the weights go to dit.safetensors"""
    out, vae = demo.out, demo.out / "vae.safetensors"
    source = ["--model-config", VAE_CONFIG, "--ckpt-path", vae, "--dataset-config", out / "clips.json"]
    shape = ["--output-path", out / "latents", "--sample-size", "65536", "--num-workers", "0"]
    demo.run("Encode the clips", "scripts/pre_encode.py", *source, *shape)
    latents = {"dataset_type": "pre_encoded", "datasets": [{"id": "latents", "path": str(out / "latents")}]}
    save(latents, out / "latents.json")
    config = load(DIT_CONFIG)
    config["training"]["pre_encoded"] = True
    save(config, out / "dit_config.json")
    title, weights = "Train a diffusion transformer on the latents", ["--pretransform-ckpt-path", vae]
    demo.train(title, "dit", out / "dit_config.json", out / "latents.json", steps, "--batch-size", "16", *weights)
    checkpoint = newest_checkpoint(demo.runs, "dit")
    demo.run("Unwrap it", "unwrap_model.py", "--ckpt-path", checkpoint, "--name", out / "dit", "--use-safetensors")
    return checkpoint


def listen(demo: Demo) -> None:
    """Reconstructions and generated audio."""
    out = demo.out
    source = ["--model-config", VAE_CONFIG, "--ckpt-path", out / "vae.safetensors", "--audio-dir", demo.clips / "bells"]
    demo.run("Reconstruct clips", "reconstruct_audios.py", *source, "--output-dir", out / "reconstructed")
    source = ["--model-config", DIT_CONFIG, "--ckpt-path", out / "dit.safetensors"]
    what = ["--cond-yaml-path", "example/generation/generate_conditions.yaml", "--output-dir", out / "generated"]
    how = ["--sample-steps", "30", "--cfg-scale", "3", "--seed", "1", "--clip-length", "3"]
    demo.run("Generate from a YAML", "generate.py", *source, *what, *how)


def judge(curves: dict[str, list[tuple[int, float]]]) -> int:
    """The demo is also a test: both losses must have fallen clearly."""
    bad = 0
    for name, points in curves.items():
        first, last = falls(points)
        verdict = "fell" if last < 0.85 * first else "did not fall enough"
        bad += verdict != "fell"
        print(f"{name}: {first:.3f} -> {last:.3f} ({verdict})")
    return 1 if bad else 0


def write_page(demo: Demo, curves: dict[str, list[tuple[int, float]]]) -> None:
    """`index.html`: what each step made, to hear and to see."""
    originals = [sorted((demo.clips / name).glob("*.flac"))[0] for name in ("drums", "bass", "chords", "rain", "bells")]
    sections = [
        ("The clips", [_card(demo.out, path, _caption(path)) for path in originals]),
        ("Generated", [_card(demo.out, path, path.stem) for path in _audio(demo.out / "generated")]),
        (
            "Reconstructed by the autoencoder",
            [_card(demo.out, path, path.stem) for path in _audio(demo.out / "reconstructed")[:5]],
        ),
        (
            "Losses",
            [
                f"<figure>{_svg(points)}<figcaption>{html.escape(name)}</figcaption></figure>"
                for name, points in curves.items()
            ],
        ),
    ]
    steps = "".join(
        f"<li><b>{html.escape(title)}</b> ({seconds:.0f} s)<pre>{html.escape(shown)}</pre></li>"
        for title, shown, seconds in demo.steps
    )
    body = "".join(f"<h2>{title}</h2><div class=row>{''.join(cards)}</div>" for title, cards in sections)
    page = f"{_HEAD}<h1>From clips to generated audio</h1>{body}<h2>The commands</h2><ol>{steps}</ol>"
    (demo.out / "index.html").write_text(page, encoding="utf-8")


def _audio(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))


def _caption(path: Path) -> str:
    return str(json.loads(path.with_suffix(".json").read_text())["prompt"])


def _card(out: Path, path: Path, caption: str) -> str:
    samples, rate = sf.read(path, dtype="float32", always_2d=True)
    name = path.relative_to(out).as_posix().replace("/", "_")
    picture = out / "pictures" / f"{name}.png"
    picture.parent.mkdir(exist_ok=True)
    spectrogram_image(torch.from_numpy(samples.T.copy()), rate).save(picture)
    source, image = (html.escape(p.relative_to(out).as_posix()) for p in (path, picture))
    return (
        f'<figure><img src="{image}" alt="spectrogram"><audio controls src="{source}"></audio>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _svg(points: list[tuple[int, float]], width: int = 420, height: int = 160) -> str:
    values = [value for _, value in points]
    low, high, last = min(values), max(values), max(step for step, _ in points)
    scaled = [
        (width * step / max(last, 1), height * (1 - (value - low) / max(high - low, 1e-9))) for step, value in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in scaled)
    return (
        f'<svg viewBox="-4 -4 {width + 8} {height + 24}"><polyline points="{line}"/>'
        f'<text x="0" y="{height + 16}">{values[0]:.3g} at the start, {values[-1]:.3g} after {last} steps</text></svg>'
    )


_HEAD = """<!doctype html><meta charset="utf-8"><title>stable_audio_tools demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fafafa }
h1 { font-weight: 600 }
h2 { margin-top: 2.5rem; font-weight: 500 }
.row { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; background: #fff; border: 1px solid #e4e4e4; border-radius: 8px; padding: .7rem; width: 320px }
figure img, figure svg { width: 100%; border-radius: 4px }
audio { width: 100%; margin-top: .4rem }
figcaption { color: #555; font-size: .9rem }
polyline { fill: none; stroke: #b5367a; stroke-width: 2 }
svg text { font: 12px system-ui, sans-serif; fill: #777 }
pre { white-space: pre-wrap; background: #f0f0f0; padding: .6rem; border-radius: 6px; font-size: .8rem }
</style>"""


if __name__ == "__main__":
    sys.exit(main())
