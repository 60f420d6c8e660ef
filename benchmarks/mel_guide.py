"""The guide of docs/mel.md on the example clips, by its commands: data set, autoencoder, U-Nets, generation, distances.

python benchmarks/mel_guide.py [--vae-steps 300] [--unet-steps 300] [--output outputs/mel_guide]

Prints how far the losses fell, and how much nearer to held-out clips the trained models are than the same models before
training, by the Fréchet distance of log-mel statistics, which need no weights. Over half an hour on two idle cores.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import stable_audio_tools
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.files import write_text
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_into, save_weights

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(stable_audio_tools.__file__).parent / "configs/model_configs/mel"
UNETS = {"pixels": "tiny_mel_unet", "latents": "tiny_mel_unet_latent", "conditional": "tiny_mel_unet_cond"}
SOUNDS = ("drums", "bass", "chords", "rain", "bells")


class Guide:
    """Run the whole guide; existing results are computed again."""

    def __init__(self, output: Path, arguments: argparse.Namespace) -> None:
        self.output, self.arguments = output, arguments
        self.seconds: dict[str, float] = {}

    def call(self, title: str, command: str) -> str:
        """Run a command of the toolkit -> what it printed."""
        print(f"[{title}] {command}", flush=True)
        started = time.monotonic()
        words = [sys.executable, *shlex.split(command)]
        done = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.seconds[title] = round(time.monotonic() - started, 1)
        if done.returncode:
            raise SystemExit(f"{title}: exit status {done.returncode}\n{done.stdout[-3000:]}")
        return done.stdout

    def clips(self) -> None:
        for name, seed in (("clips", 0), ("held_out", 1)):
            self.call(
                f"clips {name}", f"scripts/make_example_dataset.py {self.output / name} --per-class 6 --seed {seed}"
            )
        node = {"id": "clips", "path": str(self.output / "clips")}
        save({"dataset_type": "audio_dir", "datasets": [node]}, self.output / "clips.json")

    def train(self, name: str, config: str, steps: int, pretransform: Path | None = None) -> Path:
        """Train a shipped config -> the weights of its model."""
        inner = "" if pretransform is None else f" --pretransform-ckpt-path {pretransform}"
        self.call(
            f"train {name}",
            f"train.py --name {name} --model-config {CONFIGS / config}.json --dataset-config {self.output}/clips.json "
            f"--save-dir {self.output}/runs --logger csv --log-every 1 --num-workers 0 "
            f"--batch-size {self.arguments.batch_size} --max-steps {steps} --checkpoint-every {steps}{inner}",
        )
        flags = f"--ckpt-path {self.output}/runs/{name} --name {self.output}/{name} --use-safetensors"
        self.call(f"unwrap {name}", f"unwrap_model.py {flags}")
        return self.output / f"{name}.safetensors"

    def untrained(self, name: str, config: str, trained: Path, has_codec: bool) -> Path:
        """The same model before training, with the trained autoencoder where there is one."""
        content = load(CONFIGS / f"{config}.json")
        torch.manual_seed(0)
        model = create_model_from_config(content)
        before = {key: value.clone() for key, value in model.model.state_dict().items()}
        if has_codec:
            load_into(model, trained)
            model.model.load_state_dict(before)
        path = self.output / f"{name}_untrained.safetensors"
        save_weights(model, path, model_config=content)
        return path

    def generate(self, name: str, config: str, weights: Path, more: str) -> Path:
        folder = self.output / f"made_{name}"
        self.call(
            f"generate {name}",
            f"generate.py --model-config {CONFIGS / config}.json --ckpt-path {weights} --output-dir {folder} "
            f"--sample-steps {self.arguments.sample_steps} --batch-size 10 --overwrite {more}",
        )
        return folder

    def distances(self, folders: dict[str, Path]) -> dict[str, float]:
        made = " ".join(str(folder) for folder in folders.values())
        self.call(
            "distances",
            f"scripts/evaluate_fad.py --reference {self.output}/held_out --generated {made} --embedder logmel "
            f"--output {self.output}/fad",
        )
        rows = list(csv.DictReader((self.output / "fad/scores.csv").open()))
        scores = {Path(row["generated"]).name: float(row["fad"]) for row in rows}
        return {name: scores[folder.name] for name, folder in folders.items()}

    def losses(self, name: str, column: str) -> dict[str, float]:
        """Mean of the first and of the last tenth of a training loss."""
        path = sorted((self.output / "runs" / name).rglob("metrics.csv"))[-1]
        values = [float(row[column]) for row in csv.DictReader(path.open()) if row.get(column)]
        tenth = max(1, len(values) // 10)
        return {"first": sum(values[:tenth]) / tenth, "last": sum(values[-tenth:]) / tenth}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    output = arguments.output.resolve()
    guide = Guide(output, arguments)
    guide.clips()
    vae = guide.train("vae", "tiny_mel_vae", arguments.vae_steps)
    report: dict[str, Any] = {"losses": {"vae": guide.losses("vae", "train/image_loss")}, "fad": {}}
    save({name: {"sound": name} for name in SOUNDS}, output / "prompts.json")
    folders = {}
    for name, config in UNETS.items():
        latent = name == "latents"
        trained = guide.train(name, config, arguments.unet_steps, vae if latent else None)
        report["losses"][name] = guide.losses(name, "train/loss")
        asked = f"--n-sample-per-cond {arguments.items}"
        if name == "conditional":
            each = max(1, arguments.items // len(SOUNDS))
            asked = f"--cond-yaml-path {output}/prompts.json --n-sample-per-cond {each}"
        folders[name] = guide.generate(name, config, trained, asked)
        before = guide.untrained(name, config, trained, latent)
        folders[f"{name}_untrained"] = guide.generate(f"{name}_untrained", config, before, asked)
    clip = min(path for path in (output / "held_out").rglob("*") if path.suffix in (".wav", ".flac"))
    longer = f"--mode outpaint --audio {clip} --seconds 6 --overlap 0.5"
    guide.generate("outpainted", UNETS["pixels"], output / "pixels.safetensors", longer)
    report["fad"] = guide.distances(folders)
    report["seconds"] = guide.seconds
    return report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=Path("outputs/mel_guide"))
    made.add_argument("--vae-steps", type=int, default=300, help="of both networks, which take turns after the warm-up")
    made.add_argument("--unet-steps", type=int, default=300)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--items", type=int, default=20, help="clips to generate with each model")
    made.add_argument("--sample-steps", type=int, default=50)
    return made


def main() -> int:
    arguments = parser().parse_args()
    report = run(arguments)
    write_text(arguments.output / "report.json", json.dumps(report, indent=2) + "\n")
    for name, loss in report["losses"].items():
        print(f"loss {name}: {loss['first']:.3f} -> {loss['last']:.3f} ({loss['last'] / loss['first']:.2f} of it)")
    for name in UNETS:
        after, before = report["fad"][name], report["fad"][f"{name}_untrained"]
        print(f"distance {name}: {before:.2f} untrained, {after:.2f} trained, {before / after:.1f} times nearer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
