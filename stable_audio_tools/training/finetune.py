"""Fine-tunes a model on a folder of recordings: clips, captions, latents, settings, an adapter, and a page.

Everything is written to the output folder as ordinary files, and kept by later calls:

    clips/          recordings, cut at quiet places into pieces of at most one window
    captions.csv    a prompt for each clip, to be edited
    latents/KEY/    latents of the clips and their prompts; a change of either makes a new key
    model.json  dataset.json  train.sh    configs and command of the run
    runs/           the run folder of `train_lora.py`
    index.html      audio without and with the adapter, and the loss
"""

import copy
import csv
import hashlib
import html
import logging
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.core.pages import Markup, html_page, link_to, player
from stable_audio_tools.data import audio_io
from stable_audio_tools.data.metadata import read_sidecar
from stable_audio_tools.data.scanning import get_audio_filenames
from stable_audio_tools.latents.encoding import encode_dataset
from stable_audio_tools.latents.settings import PreEncodeSettings
from stable_audio_tools.models.checkpoints import open_weights
from stable_audio_tools.models.pretrained import find_model
from stable_audio_tools.training.callbacks.adapters import WITHOUT
from stable_audio_tools.training.lora import fit_lora
from stable_audio_tools.training.memory import format_bytes
from stable_audio_tools.training.settings import FinetuneSettings, LoraSettings

logger = logging.getLogger(__name__)

CAPTIONS = "captions.csv"
PAGE = "index.html"
_GUESSED = ("prompt", "seconds_start", "seconds_total")  # conditions that a recording answers by itself
# Bytes that a pass in float32 keeps per frame, layer and channel of a transformer: as traced on Stable Audio Open,
# without and with recomputation in the backward pass.
_KEPT, _KEPT_RECOMPUTED = 304, 17
_ADAPTER_BYTES = 20 * 0.0124 / 16  # per value of the base and unit of rank: weight, gradient, moments, average
_RESERVE = 0.9  # share of the memory that is planned for


class MemoryPlan(NamedTuple):
    """The settings that follow from the memory."""

    batch_size: int
    checkpointing: str
    base_precision: str
    needed: float  # bytes


def finetune(settings: FinetuneSettings) -> Path:
    """Fine-tune as the settings say; return the page, or with `prepare_only` the table of captions."""
    config, weights = find_model(settings.model)
    _require_known_conditions(config)
    output = settings.output_dir
    captions = write_captions(settings.folder, output, config["sample_size"] / config["sample_rate"])
    if settings.prepare_only:
        return captions
    latents = encode_clips(captions, output, config, weights)
    plan = choose_plan(config, weights, settings.rank, settings.memory or _memory())
    clips = len(_read_captions(captions))
    steps = settings.steps or min(2000, max(200, 100 * clips // plan.batch_size))
    logger.info(
        "%d clips, %d steps; batch %d, rank %d, base in %s, checkpointing %s: about %s",
        clips,
        steps,
        plan.batch_size,
        settings.rank,
        plan.base_precision,
        plan.checkpointing,
        format_bytes(plan.needed),
    )
    run = fit_lora(_write_configs(settings, output, config, weights, latents, plan, steps, captions))
    return write_page(output, run)


# ------------------------------------------------------------------ clips and captions


def write_captions(folder: Path, output: Path, seconds: float) -> Path:
    """Cut the recordings of a folder into clips of at most `seconds`; write their table, keeping edited prompts."""
    names = sorted(get_audio_filenames(str(folder)))
    if not names:
        raise UserError(f"{folder}: holds no audio files; give a folder of recordings")
    table = output / CAPTIONS
    prompts = _read_captions(table) if table.exists() else {}
    clips = output / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rows: dict[str, str] = {}
    for name in map(Path, names):
        about = audio_io.info(name)
        stem = re.sub(r"\W+", "_", name.relative_to(folder).with_suffix("").as_posix())
        while any(row.startswith(f"clips/{stem}-") for row in rows):  # a file of the same name and another suffix
            stem += "_"
        prompt = str(read_sidecar(name).get("prompt") or _words_of(name, folder))
        spans = split_spans(audio_io.read(name).samples.mean(0).numpy(), int(seconds * about.sample_rate))
        for number, (start, end) in enumerate(spans):
            clip = f"clips/{stem}-{number:03d}.wav"
            path = output / clip
            is_current = path.exists() and path.stat().st_mtime >= name.stat().st_mtime
            if not is_current or audio_io.info(path).frames != end - start:
                piece = audio_io.read(name, start, end - start).samples
                audio_io.write(path, piece, about.sample_rate, bits=24, clip=True)
            rows[clip] = prompts.get(clip, prompt)
    lines = [["path", "prompt"], *([clip, prompt] for clip, prompt in rows.items())]
    with (output / CAPTIONS).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    logger.info("%s: %d clips of %d recordings; edit their prompts there", table, len(rows), len(names))
    return table


def split_spans(audio: NDArray[np.float32], window: int, hop: int = 512) -> list[tuple[int, int]]:
    """Return spans of at most `window` samples over mono audio, each cut at the quietest place of its last quarter."""
    spans, start = [], 0
    while len(audio) - start > window:
        first = start + 3 * window // 4
        candidates = range(first, start + window - hop, hop) or range(start + window - hop, start + window)
        loudness = [float(np.square(audio[place : place + hop]).sum()) for place in candidates]
        cut = candidates[int(np.argmin(loudness))] + hop // 2
        spans.append((start, cut))
        start = cut
    return [*spans, (start, len(audio))]


def _words_of(name: Path, folder: Path) -> str:
    """Return the words of a file's name, or of its folder's if the file is only numbered."""
    for part in (name.stem, name.parent.name, folder.resolve().name):
        words = re.sub(r"[\W\d_]+", " ", part).strip().lower()
        if words:
            return words
    raise UserError(f"{name}: neither the file nor its folder has a name with words; write {name.stem}.txt beside it")


def _read_captions(table: Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"path", "prompt"} <= set(rows[0]):
        raise UserError(f"{table}: expected the columns path and prompt, got {', '.join(map(str, rows[0]))}")
    empty = [row["path"] for row in rows if not (row["prompt"] or "").strip()]
    if empty:
        raise UserError(f"{table}: {empty[0]} has no prompt; write one, or delete the clip's row and recording")
    return {row["path"]: row["prompt"].strip() for row in rows}


def _require_known_conditions(config: JsonObject) -> None:
    model = config.get("model") or {}
    ids = [node["id"] for node in (model.get("conditioning") or {}).get("configs", [])]
    if config.get("model_type") not in ("diffusion_cond", "diffusion_cond_inpaint") or "prompt" not in ids:
        raise UserError("--model: expected a diffusion model that takes a prompt; train others with train_lora.py")
    others = [id for id in ids if id not in _GUESSED]
    if others:
        raise UserError(
            f"--model: it also takes {', '.join(others)}, which recordings alone do not answer; write a dataset config "
            "and use train_lora.py"
        )


# ------------------------------------------------------------------ settings


def choose_plan(config: JsonObject, weights: Path, rank: int, memory: float) -> MemoryPlan:
    """Return the largest batch that fits, with recomputation and a bfloat16 base (on a GPU) only where needed.

    Weights and adapter are counted; activations follow from frames, layers and width of the transformer.
    """
    values = sum(tensor.numel() for tensor in open_weights(weights).tensors.values())
    backbone = config["model"]["diffusion"].get("config", {})
    ratio = (config["model"].get("pretransform") or {}).get("config", {}).get("downsampling_ratio", 1)
    frames = int(config["sample_size"]) // ratio
    size = frames * backbone.get("depth", 24) * backbone.get("embed_dim", 1536)
    on_gpu = torch.cuda.is_available()
    plans = []
    for batches in ((8, 4), (2, 1)):
        for base in ("fp32", "bf16") if on_gpu else ("fp32",):
            for checkpointing in ("off", "on"):
                for batch in batches:
                    kept = (_KEPT_RECOMPUTED if checkpointing == "on" else _KEPT) * (0.5 if on_gpu else 1.0)
                    base_bytes = values * (2 if base == "bf16" else 4)
                    needed = base_bytes + values * rank * _ADAPTER_BYTES + batch * size * kept
                    plans.append(MemoryPlan(batch, checkpointing, base, needed))
    for plan in plans:
        if plan.needed <= _RESERVE * memory:
            return plan
    smallest = min(plans, key=lambda plan: plan.needed)
    logger.warning("the smallest settings need %s of %s", format_bytes(smallest.needed), format_bytes(memory))
    return smallest


def _memory() -> float:
    """Return the bytes of the GPU, or of the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    if not hasattr(os, "sysconf"):
        raise UserError("--memory-gb: missing; this system does not report its memory")
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def encode_clips(captions: Path, output: Path, config: JsonObject, weights: Path) -> Path | None:
    """Encode the clips and their prompts, once for each state of both; None for models without a pretransform."""
    entry = {"id": "clips", "path": str(output / "clips"), "metadata_path": str(captions), "only_listed": True}
    dataset = {"dataset_type": "audio_dir", "datasets": [entry], "random_crop": False}
    save(dataset, output / "clips.json")
    if not (config["model"].get("pretransform")):
        return None
    digest = hashlib.sha256(captions.read_bytes() + str(weights.resolve()).encode())
    for clip in sorted(_read_captions(captions)):
        status = (output / clip).stat()
        digest.update(f"{clip} {status.st_size} {status.st_mtime_ns}".encode())
    folder = output / "latents" / digest.hexdigest()[:12]
    save(config, output / "base.json")
    encode_dataset(
        PreEncodeSettings(
            dataset_config=str(output / "clips.json"),
            output_path=str(folder),
            model_config=str(output / "base.json"),
            ckpt_path=str(weights),
            sample_size=int(config["sample_size"]),
            num_workers=0,
        )
    )
    return folder


def _write_configs(
    settings: FinetuneSettings,
    output: Path,
    config: JsonObject,
    weights: Path,
    latents: Path | None,
    plan: MemoryPlan,
    steps: int,
    captions: Path,
) -> LoraSettings:
    """Write model.json, dataset.json and train.sh; return the settings of the run."""
    model = copy.deepcopy(dict(config))
    training = model.setdefault("training", {})
    training["pre_encoded"] = latents is not None
    seconds = int(config["sample_size"]) / int(config["sample_rate"])
    ids = {node["id"] for node in model["model"]["conditioning"]["configs"]}
    values = {"seconds_start": 0, "seconds_total": round(seconds, 2)}
    prompts = list(dict.fromkeys(_read_captions(captions).values()))[: settings.num_demos]
    training["demo"] = {
        "demo_cfg_scales": [4.0],
        "demo_steps": 50,
        **training.get("demo", {}),
        "demo_every": max(1, steps // 2),
        "num_demos": len(prompts),
        "demo_cond": [{"prompt": text, **{key: values[key] for key in values if key in ids}} for text in prompts],
    }
    save(model, output / "model.json")
    dataset = load(output / "clips.json")
    if latents is not None:
        dataset = {"dataset_type": "pre_encoded", "datasets": [{"id": "latents", "path": str(latents)}]}
    save(dataset, output / "dataset.json")
    on_gpu = torch.cuda.is_available()
    run = LoraSettings(
        name="finetune",
        model_config=str(output / "model.json"),
        dataset_config=str(output / "dataset.json"),
        pretrained_ckpt_path=str(weights),
        save_dir=str(output / "runs"),
        rank=settings.rank,
        batch_size=min(plan.batch_size, len(_read_captions(captions))),
        checkpointing=plan.checkpointing,
        base_precision="" if plan.base_precision == "fp32" else plan.base_precision,
        max_steps=steps,
        adapter_every=max(1, steps // 4),
        logger="csv",
        log_every=max(1, steps // 100),
        num_workers=2 if latents is None else 0,
        accelerator="auto" if on_gpu else "cpu",
    )
    changed = [(field.name, getattr(run, field.name)) for field in fields(run)]
    defaults = LoraSettings()
    flags = [
        word
        for name, value in changed
        if value != getattr(defaults, name)
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    write_text(output / "train.sh", f"python train_lora.py {shlex.join(flags)}\n")
    return run


# ------------------------------------------------------------------ the page


def write_page(output: Path, run: Path) -> Path:
    """Write the page of a run: its last demos without and with the adapter, its loss, and where its files are."""
    demos = sorted((run / "demos").glob("step_*"))
    players = []
    for after in sorted(demos[-1].glob("*.wav")) if demos else []:
        before = after.with_name(f"{after.stem}{WITHOUT}.wav")
        if before.exists():
            cells = "".join(f"<td>{player(path, output)}</td>" for path in (before, after))
            players.append(f"<tr><td>{html.escape(after.stem)}</td>{cells}</tr>")
    adapters = sorted((run / "adapters").glob("*.safetensors"))
    files = "".join(f'<li><a href="{link_to(path, output)}">{html.escape(path.name)}</a></li>' for path in adapters)
    prompts = load(output / "model.json")["training"]["demo"]["demo_cond"]
    listed = "".join(f"<li>{html.escape(str(entry['prompt']))}</li>" for entry in prompts)
    content = (
        f"<h2>Before and after</h2><p>The prompts of the demo, one after the other:</p><ol>{listed}</ol>"
        '<div class="wide"><table><tr><th>demo</th><th>base model</th><th>with adapter</th></tr>'
        f"{''.join(players)}</table></div>"
        f"<h2>Loss</h2>{_curve(read_losses(run))}<h2>Adapters</h2><ul>{files}</ul>"
    )
    write_text(output / PAGE, html_page(f"Fine-tuning of {run.name}", [Markup(content)]))
    return output / PAGE


def read_losses(run: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of the metrics of a run."""
    losses = []
    for file in sorted(run.rglob("metrics.csv")):
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                name = next((key for key in ("train/loss", "loss") if row.get(key)), None)
                if name is not None:
                    losses.append((int(float(row.get("step") or 0)), float(row[name])))
    return losses


def _curve(losses: Sequence[tuple[int, float]]) -> str:
    """Draw losses as a line, in SVG."""
    if len(losses) < 2:
        return "<p>fewer than two values were logged</p>"
    steps, values = zip(*losses)
    low, high = min(values), max(values)
    across, up = 600 / max(1, steps[-1] - steps[0]), 180 / ((high - low) or 1)
    points = " ".join(f"{across * (step - steps[0]):.1f},{190 - up * (value - low):.1f}" for step, value in losses)
    line = f'<polyline fill="none" stroke="currentColor" points="{points}"/>'
    return f'<svg viewBox="0 0 600 200">{line}</svg><p>from {values[0]:.4g} to {values[-1]:.4g}</p>'
