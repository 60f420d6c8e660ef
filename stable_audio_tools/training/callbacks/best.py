"""The best checkpoint by a score, and when to stop waiting for a better one."""

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stable_audio_tools.training.run_folder import remove_checkpoint

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """Scores are better when lower. All processes call `judge` with the same score."""

    def __init__(self, folder: Path | None, keep: bool, patience: int | None) -> None:
        self.folder, self.keep, self.patience = folder, keep, patience
        self.score, self.step, self.without = math.inf, -1, 0

    def judge(self, trainer: pl.Trainer, score: float) -> bool:
        """Take note of a score -> has patience run out?"""
        if score < self.score:
            self.score, self.step, self.without = score, trainer.global_step, 0
            if self.keep:
                self._save(trainer)
            return False
        self.without += 1
        return self.patience is not None and self.without >= self.patience

    def _save(self, trainer: pl.Trainer) -> None:
        """One file; the one before goes when the new one is whole."""
        folder = self.folder or Path(trainer.default_root_dir) / "checkpoints" / "best"
        path = folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and path.exists():
            for older in folder.glob("*.ckpt"):
                if older != path:
                    remove_checkpoint(older)
            logger.info("the best checkpoint is that of step %d", trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "without": self.without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step, self.without = state["score"], state["step"], state["without"]
