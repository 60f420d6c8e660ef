"""Real launches of `train.py` in several processes, on the CPU with gloo."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "train.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
LIGHTNING = (sys.executable,)
SECONDS = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def restore_interrupt() -> None:
    """Let a child process be interrupted although a background shell has it ignore SIGINT (a `preexec_fn`)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**variables: Any) -> dict[str, str]:
    """The environment without the variables of any launcher, but those given."""
    launchers = ("SLURM_", "TORCHELASTIC_", "MASTER_")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(launchers) and key not in names}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | {key: str(v) for key, v in variables.items()}


def words(config: Path, dataset: Path, save_dir: Path, *flags: Any) -> list[str]:
    """Flags of a short run on the CPU; later ones win."""
    common = ["--model-config", config, "--dataset-config", dataset, "--save-dir", save_dir, "--name", "run"]
    common += ["--batch-size", 2, "--num-workers", 0, "--logger", "none", "--accelerator", "cpu"]
    return [str(word) for word in (*common, *flags)]


def start(command: Any, script: Path = TRAIN, **variables: Any) -> "subprocess.Popen[str]":
    """Start a launch in a process group of its own, so that a signal can reach all of it."""
    launcher, *flags = command
    return subprocess.Popen(
        [*launcher, str(script), *map(str, flags)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", status: int | None = 0) -> str:
    """Wait for a launch -> what it wrote to stderr. Nothing of its group is left behind."""
    try:
        _, report = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        kill(process)
        _, report = process.communicate()
        raise AssertionError(f"no end after {SECONDS} s: {report[-3000:]}") from None
    finally:
        kill(process)
    if status is not None:
        assert process.returncode == status, report[-3000:]
    return report


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a launch with all its processes; torchrun puts each worker in a session of its own."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(family[1:], timeout=10)


def run(command: Any, script: Path = TRAIN, status: int | None = 0, **variables: Any) -> str:
    return finish(start(command, script, **variables), status)
