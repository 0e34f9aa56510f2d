"""The book in reading order: no technical term before the page that defines it, and a glossary that leads there."""

import re
from pathlib import Path

import pytest

from tests.test_pages import prose
from tools.source import ROOT

# An entry of the glossary: the term, its line, the page that earns it, and the spellings that count as technical.
ENTRY = re.compile(r"- (?:<a id=\"[\w-]+\"></a>)?\*\*(?P<term>[^*]+)\*\*.*?\]\((?P<page>\d\d_\w+\.md)[^)]*\)")
TECHNICAL = re.compile(r"<!-- technical: (.+?) -->")
PREVIEW = re.compile(r"^> \*\*Preview\.\*\*.*(?:\n>.*)*", re.MULTILINE)


def entries(glossary: str) -> list[tuple[str, str, list[str]]]:
    """Return the term, the page that earns it and the technical spellings of each entry."""
    found = []
    for line in glossary.split("\n"):
        if match := ENTRY.match(line):
            forms = TECHNICAL.search(line)
            found.append((match["term"], match["page"], forms[1].split(", ") if forms else []))
    return found


def used_early(pages: dict[str, str], glossary: str) -> list[str]:
    """Return where a technical term stands on a page before the one that defines it, outside of a preview."""
    found, order = [], sorted(pages)
    for name in order:
        text = "\n".join(prose(PREVIEW.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), pages[name])))
        later = [entry for entry in entries(glossary) if order.index(entry[1]) > order.index(name)]
        for term, page, forms in later:
            # A term may be broken over two lines.
            spellings = "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in forms) or r"(?!)"
            for match in re.finditer(rf"\b(?:{spellings})\b", text, re.IGNORECASE):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {term!r} is defined in {page}")
    return sorted(found)


def chapters() -> dict[str, str]:
    """Return the text of every chapter but the glossary."""
    paths = (path for path in (ROOT / "chapters").glob("[0-9][0-9]_*.md") if not path.name.startswith("11"))
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def glossary() -> str:
    """Return the text of the glossary."""
    return Path(ROOT, "chapters/11_glossary.md").read_text(encoding="utf-8")


def test_no_technical_term_is_used_before_the_page_that_defines_it():
    assert used_early(chapters(), glossary()) == []


def test_the_glossary_has_120_terms_in_order_each_once_and_each_on_its_page():
    terms = [term for term, _, _ in entries(glossary())]
    assert len(terms) >= 120 and terms == sorted(set(terms), key=str.lower)
    assert len(terms) == len(re.findall(r"^- .*?\*\*[^*]+\*\*", glossary(), re.MULTILINE))
    for term, page, forms in entries(glossary()):
        text = " ".join(chapters()[page].lower().split())
        assert any(form.lower() in text for form in [term, *forms]), f"{page} never says {term!r}"


PAGES = {
    "01_first.md": "A plain page.\n\n> **Preview.** Later you meet a gizmo.\n> And gizmos.\n\n`gizmo` is code.\n",
    "02_second.md": "A *gizmo* turns.\n",
}
GLOSSARY = """- **gizmo**: it turns. [2](02_second.md#gizmo) <!-- technical: gizmo, gizmos, turning thing -->
- **plain**: flat. [1](01_first.md)
"""


def test_a_term_in_a_preview_in_code_or_on_its_own_page_is_fine():
    assert used_early(PAGES, GLOSSARY) == []


@pytest.mark.parametrize("words", ["It has a gizmo.", "Two Gizmos.", "> A gizmo in another box.", "A turning\nthing."])
def test_a_term_that_comes_too_early_is_found(words):
    found = used_early(PAGES | {"01_first.md": f"A plain page.\n\n{words}\n"}, GLOSSARY)
    assert found == ["01_first.md:3: 'gizmo' is defined in 02_second.md"]
