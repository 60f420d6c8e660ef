"""Links of the documents lead to files and headings that exist."""

import re
from pathlib import Path

import pytest
from support.docs_pages import PAGES, ROOT, name_of, prose_of

_LINK = re.compile(r"(?<!\\)\[[^\]\[]*\]\(([^)\s]+)\)")
_OTHERS = ("CHANGELOG.md", "THIRD_PARTY.md")


def anchors_of(page: Path) -> set[str]:
    """What GitHub and the site call the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in _OTHERS)], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "mailto:")), link
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)}: {link} leads nowhere"
        assert path.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors_of(path), f"{name_of(page)}: {link}: no such heading"


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in _LINK.findall(prose_of(page)):
            path = (page.parent / link.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.exists() and path not in reached:
                waiting.append(path)
    assert set(PAGES) <= reached, [name_of(page) for page in set(PAGES) - reached]
