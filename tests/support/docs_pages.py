"""The pages of the documents and the fenced blocks on them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)(?P<rest>[^\n`]*)$")
_MARK = re.compile(r"^ *<!-- (?P<word>run|file|needs)(?:: *(?P<value>.*?))? -->$")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the word of the comment before it and `value` what stands behind its colon."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block, and every `needs` comment as a block without text, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    number = 0
    while number < len(lines):
        mark = _MARK.match(lines[number])
        if mark and mark["word"] == "needs":
            found.append(Block(page, number + 1, "", "", "needs", mark["value"] or ""))
        fence = _FENCE.match(lines[number])
        if fence:
            before = _MARK.match(lines[number - 1]) if number else None
            word, value = (before["word"], before["value"] or "") if before else ("", "")
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
            text = "\n".join(line.removeprefix(fence["indent"]) for line in lines[number + 1 : end]) + "\n"
            found.append(Block(page, number + 1, fence["language"], text, "" if word == "needs" else word, value))
            number = end
        number += 1
    return found


def prose_of(page: Path) -> str:
    """The page without its fenced blocks and comments."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            lines.append(line)
    return _COMMENT.sub("", "\n".join(lines))


def marks_without_block(page: Path) -> list[int]:
    """Lines with a `run` or `file` comment that no fence follows, or a comment that only looks like a mark."""
    lines = [*page.read_text(encoding="utf-8").splitlines(), ""]
    wrong = []
    for number, line in enumerate(lines[:-1]):
        mark = _MARK.match(line)
        if re.match(r"^ *<!-- *(run|file|needs)\b", line) and not mark:
            wrong.append(number + 1)
        if mark and mark["word"] != "needs" and not _FENCE.match(lines[number + 1]):
            wrong.append(number + 1)
    return wrong
