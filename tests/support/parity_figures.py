"""Recorded reference figures: named weights and inputs, and the comparison of a case with its figures.

Every learnable tensor is filled from a rule of its state-dict name and shape, so the same names mean the same weights,
and outputs can be compared number for number.
"""

import contextlib
import io
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


def fill(name: str, shape, kind: str = "normal"):
    """A float32 array that depends on the tensor's name and shape alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    shape = tuple(shape)
    leaf = name.rsplit(".", 1)[-1]
    x = rng.standard_normal(shape, dtype=np.float32) if shape else np.float32(rng.standard_normal())
    if kind == "codebook":
        return x
    if leaf == "weight_g":
        return np.float32(0.6) + np.float32(0.06) * x  # weight-norm gains: activations stay of order one
    if leaf in ("gamma", "gain") or (leaf == "weight" and len(shape) == 1):
        return np.float32(1) + np.float32(0.1) * x  # norms
    if len(shape) <= 1:
        return np.float32(0.1) * x  # biases, snake parameters, scales
    fan_in = int(np.prod(shape[1:]))
    return np.float32(1.0 / np.sqrt(fan_in)) * x


def load_weights(module):
    """Fill every learnable tensor (and learned codebook buffer) in place, by name."""
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.nn.Parameter):
                tensor.copy_(torch.from_numpy(np.asarray(fill(name, tensor.shape))))
            elif name.endswith((".embed", ".embed_avg", ".codebook.weight")) and tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(fill(name, tensor.shape, "codebook")))
    return module


def noise(key: str, *shape):
    """Named input: standard normal float32 tensor."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def tone(channels: int, samples: int, rate: int = 16000, batch: int = 1):
    """A decaying chord with a little noise: audio-like input in [-1, 1]."""
    t = np.arange(samples, dtype=np.float64) / rate
    rows = []
    for c in range(channels):
        wave = sum(np.sin(2 * np.pi * f * (1 + 0.01 * c) * t + c) for f in (110.0, 440.0, 1320.0))
        rows.append(0.25 * wave * np.exp(-2 * t))
    x = torch.from_numpy(np.stack(rows).astype(np.float32))[None].repeat(batch, 1, 1)
    return (x + 0.02 * noise(f"tone{channels}x{samples}x{batch}", batch, channels, samples)).clamp(-1, 1)


def compact(array: np.ndarray, limit: int = 4096) -> dict:
    """Keep small arrays whole; of large ones keep moments and an even stride."""
    a = np.asarray(array)
    flat = a.reshape(-1)
    out = {"shape": np.array(a.shape, dtype=np.int64)}
    if flat.size <= limit:
        out["values"] = flat
    else:
        step = -(-flat.size // limit)
        f = flat.astype(np.float64)
        out["values"] = flat[::step]
        out["moments"] = np.array([f.mean(), f.std(), f.min(), f.max()])
    return out


def to_numpy(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float().numpy() if value.is_floating_point() else value.to(torch.int64).numpy()
    return np.asarray(value)


def run_case(case):
    """-> ({'key:<name>': shape ...}, {output: array}); quiet on stdout."""
    torch.manual_seed(0)
    np.random.seed(0)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return case()


def state_shapes(module):
    return {k: list(v.shape) for k, v in module.state_dict().items()}


def check(name: str, case, golden: Path = GOLDEN) -> None:
    """Run a case and hold it against its recorded figures: names, shapes, values."""
    module, outputs = run_case(case)
    tensors = module if isinstance(module, dict) else state_shapes(module) if module is not None else {}
    assert tensors == json.loads((golden / f"{name}.keys.json").read_text())
    recorded = np.load(golden / f"{name}.npz")
    for key in sorted(set(recorded.files)):
        entry, _, part = key.rpartition("/")
        found, wanted = compact(to_numpy(outputs[entry]))[part].astype(np.float64), recorded[key].astype(np.float64)
        if part == "shape":
            assert list(found) == list(wanted), entry
        elif wanted.size:
            allowed = case.tolerance * (np.sqrt(np.nanmean(wanted**2)) + 1e-6)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed, err_msg=key)
