"""Logging to stderr, one line per event, from rank zero; libraries log errors only."""

import logging
import os
import sys
import warnings

from stable_audio_tools.core.ranks import is_rank_zero, rank, world_size

_QUIET = (
    "httpx",
    "httpcore",
    "urllib3",
    "filelock",
    "fsspec",
    "PIL",
    "matplotlib",
    "numba",
    "botocore",
    "boto3",
    "s3transfer",
)


def setup(verbose: bool = False) -> None:
    """Configure logging of a command. Ranks other than zero report warnings only, with their number."""
    level = logging.DEBUG if verbose else logging.INFO if is_rank_zero() else logging.WARNING
    prefix = f"[rank {rank()}] " if world_size() > 1 and not is_rank_zero() else ""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"{prefix}%(levelname)s: %(message)s", force=True
    )
    logging.getLogger("stable_audio_tools").setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*weight_norm.*is deprecated.*")
