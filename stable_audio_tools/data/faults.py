"""Items that cannot be used: each is named and counted, and too many stop the run."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from stable_audio_tools.core.errors import AudioError

logger = logging.getLogger(__name__)

OnBadItem = Literal["skip", "raise", "quarantine"]
FaultKind = Literal["unreadable", "short", "silent", "not finite", "bad metadata", "rejected", "filtered"]
_CHOSEN: frozenset[str] = frozenset({"rejected", "filtered"})  # left out on request, so not bad
_NAMED_IN_LOG = 20


class Fault(NamedTuple):
    """The reason why an item is left out."""

    path: str
    kind: FaultKind
    detail: str
    lasting: bool = True  # false if another crop of the file may be usable

    @property
    def is_bad(self) -> bool:
        return self.kind not in _CHOSEN

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


class BadItem(AudioError):
    """An item that cannot be used; it becomes a `Fault`."""

    def __init__(self, kind: FaultKind, detail: str, lasting: bool = True) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.lasting = kind, detail, lasting

    def __reduce__(self) -> tuple[type["BadItem"], tuple[FaultKind, str, bool]]:
        return type(self), (self.kind, self.detail, self.lasting)

    def at(self, path: str) -> Fault:
        return Fault(path, self.kind, self.detail, self.lasting)


@dataclass(frozen=True)
class FaultPolicy:
    """The treatment of bad items, and the share of them that stops a run."""

    on_bad_item: OnBadItem = "skip"
    quarantine_file: str | None = None
    max_bad_fraction: float = 0.2


class FaultReport:
    """The items left out of the current epoch, and those that never entered one."""

    def __init__(self, policy: FaultPolicy, known: list[Fault]) -> None:
        self.policy, self.known = policy, known
        self._epoch: dict[str, Fault] = {}
        self._logged: set[str] = set()
        self._quarantined: set[str] = set()
        for fault in known:
            self._act(fault)

    @property
    def faults(self) -> list[Fault]:
        """Return all faults, each file once."""
        return [*self.known, *self._epoch.values()]

    @property
    def epoch(self) -> list[Fault]:
        """Return the faults of the current epoch."""
        return list(self._epoch.values())

    def begin_epoch(self) -> None:
        self._epoch = {}

    def add(self, fault: Fault, items: int, processes: int = 1) -> None:
        """Record a fault in an epoch of `items` items shared by `processes`; raise if too many are bad."""
        self._epoch.setdefault(fault.path, fault)
        self._act(fault)
        self.stop_if_too_many(items, processes)

    def stop_if_too_many(self, items: int, processes: int = 1) -> None:
        """Raise AudioError when more than the allowed fraction of all items is bad."""
        known = sum(fault.is_bad for fault in self.known)
        now = sum(fault.is_bad for fault in self._epoch.values())
        everything = items + known
        rounding = processes - 1 if now else 0  # one process may hold one item more than its share
        if known + now * processes > self.policy.max_bad_fraction * everything + rounding:
            raise AudioError(
                f"{known + now} of {everything // processes} items are bad, more than max_bad_fraction = "
                f"{self.policy.max_bad_fraction:g} allows: {self.counts()}; "
                f"first: {next(fault for fault in self.faults if fault.is_bad)}"
            )

    def counts(self) -> str:
        """Return the number of faults by kind, such as "3 unreadable, 1 silent"."""
        counted = Counter(fault.kind for fault in self.faults).most_common()
        return ", ".join(f"{count} {kind}" for kind, count in counted) or "none"

    def log_epoch(self, epoch: int) -> None:
        """Log one line at the end of an epoch."""
        if self.faults:
            logger.warning("epoch %d: %d items were left out: %s", epoch, len(self.faults), self.counts())
        else:
            logger.log(logging.DEBUG if epoch else logging.INFO, "epoch %d: no item was left out", epoch)

    def _act(self, fault: Fault) -> None:
        if fault.is_bad and self.policy.on_bad_item == "raise":
            raise AudioError(str(fault))
        self._log_once(fault)
        if fault.is_bad and fault.lasting and self.policy.on_bad_item == "quarantine":
            self._quarantine(fault)

    def _log_once(self, fault: Fault) -> None:
        if fault.path in self._logged or not fault.is_bad:
            return
        self._logged.add(fault.path)
        if len(self._logged) <= _NAMED_IN_LOG:
            logger.warning("left out: %s", fault)
        elif len(self._logged) == _NAMED_IN_LOG + 1:
            logger.warning("further items are left out; they are counted, and check-data lists each")

    def _quarantine(self, fault: Fault) -> None:
        """Append to the list that later runs read; a line is one write, so that processes do not mix theirs."""
        if fault.path in self._quarantined or self.policy.quarantine_file is None:
            return
        self._quarantined.add(fault.path)
        target = Path(self.policy.quarantine_file)
        target.parent.mkdir(parents=True, exist_ok=True)
        reason = f"{fault.kind}: {fault.detail}".replace("\n", " ")
        with target.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{whole_path(fault.path)}\t# {reason}\n")


def whole_path(path: str) -> str:
    """Return a normalised absolute path; addresses such as s3://... are unchanged."""
    return path if "://" in path else os.path.normpath(Path(path).absolute())
