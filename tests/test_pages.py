"""Pages keep their promises: links lead somewhere, pictures are here and described, words are plain."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.book import PAGES, fences
from tools.source import ROOT

# Words that explain nothing, leftovers of a draft, and exclamation marks that do not open a picture.
BANNED = re.compile(
    r"\b(simply|just|obviously|it is easy to see|in this section we will|let me recount|TODO|TBD)\b|!(?!\[)",
    re.IGNORECASE,
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
REFERENCE = re.compile(r"^ {0,3}()\[([^\]]+)\]:\s+<?(\S+?)>?$")
TAG = re.compile(r"<(?:(img)|a)\b[^>]*?\b(?:src|href)=\"([^\"]*)\"[^>]*>")


def prose(text: str) -> list[str]:
    """Return the lines of a page with everything that is not prose blanked: code, comments, tables, formulas.

    What stands between table marks was written by a script or said by a model, not by an author.
    """
    lines = text.split("\n")
    for fence in fences(lines):
        lines[fence.first : fence.last + 1] = [""] * (fence.last + 1 - fence.first)
    table, comment, code = r"<!-- table:.*?<!-- /table -->", r"<!--.*?-->", r"(`+)(?!`).+?(?<!`)\1(?!`)"
    blank = re.compile(rf"{table}|{comment}|{code}|\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
    return blank.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), "\n".join(lines)).split("\n")


def anchors(text: str) -> set[str]:
    """Return what a link may name behind its #: headings as GitHub spells them, and explicit ids."""
    lines, found = text.split("\n"), set(re.findall(r"<\w+ (?:id|name)=\"([^\"]+)\"", text))
    inside = {i for fence in fences(lines) for i in range(fence.first, fence.last + 1)}
    for line in (line for i, line in enumerate(lines) if i not in inside):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(next(s for s in [slug, *(f"{slug}-{n}" for n in range(1, 99))] if s not in found))
    return found


def links(lines: list[str]) -> Iterator[tuple[int, bool, str, str]]:
    """Yield (line, is a picture, text, target) for each link of a page."""
    for number, line in enumerate(lines, 1):
        for bang, text, target in LINK.findall(line) + REFERENCE.findall(line):
            yield number, bool(bang), text, target
        for match in TAG.finditer(line):
            alt = re.search(r"\balt=\"([^\"]*)\"", match[0])
            yield number, bool(match[1]), alt[1] if alt else "", match[2]


def faults(page: Path, root: Path) -> list[str]:
    """Return what is wrong with the links, pictures and words of one page."""
    found, lines = [], prose(page.read_text(encoding="utf-8"))
    for number, picture, text, target in links(lines):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if picture and not text.strip():
            found.append(f"{number}: picture {target} has no alt text: say what to see")
        if re.match(r"[a-z]+:", target):
            found += [f"{number}: picture {target} is not in the repository"] if picture else []
        elif not (path.exists() and path.is_relative_to(root)):
            found.append(f"{number}: {target} leads nowhere")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text("utf-8")):
            found.append(f"{number}: {target}: that page has no heading #{anchor}")
    for number, line in enumerate(lines, 1):
        found += [f"{number}: do not write {word[0]!r}" for word in BANNED.finditer(line)]
    return found


def pages() -> list[str]:
    others = ("*.md", "models/*/*.md", "notebooks/*.md", "benchmarks/*.md")
    paths = {path for pattern in [*PAGES, *others] for path in ROOT.glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.parametrize("name", pages())
def test_links_lead_somewhere_pictures_are_described_and_words_are_plain(name: str):
    assert faults(ROOT / name, ROOT) == []


GOOD = """# A page: `x`, and [more](#a-page-x-and-more)

See [the other](other.md#second-part-1), [code](code.py), [a site](https://example.org/x#y), [here](#spot).
![A curve that falls](curve.png) and <img src="curve.png" alt="the same"> <a id="spot"></a>
`just!` is code, $n!$ a formula. <!-- simply -->

```text
Obviously!
# no heading
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page without a fault, beside what it links to."""
    (tmp_path / "other.md").write_text("# Other\n\n## Second part\n\n## Second part\n")
    for name in ("code.py", "curve.png"):
        (tmp_path / name).touch()
    (tmp_path / "page.md").write_text(GOOD)
    return tmp_path / "page.md"


def test_a_page_without_a_fault_passes(page: Path):
    assert faults(page, page.parent) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(code.py)", "(missing.py)", "3: missing.py leads nowhere"),
        ("(code.py)", "(../outside.py)", "3: ../outside.py leads nowhere"),
        ("#second-part-1", "#second-part-2", "3: .* no heading"),
        ("(#spot)", "(#no-heading)", "3: .* no heading"),
        ("See", "[c]: gone.md\n\nSee", "3: gone.md leads nowhere"),
        ("![A curve that falls]", "![]", "4: .*no alt text"),
        (' alt="the same"', "", "4: .*no alt text"),
        ("(curve.png)", "(https://example.org/curve.png)", "4: .*not in the repository"),
        ("`just!` is", "It is just", "5: .*'just'"),
        ("a formula.", "a formula!", "5: .*'!'"),
        ("See", "Obviously, see", "3: .*'Obviously'"),
        ("See", "it is easy to see", "3: .*'it is easy to see'"),
    ],
)
def test_each_fault_of_a_page_is_found(page: Path, old: str, new: str, words: str):
    page.write_text(GOOD.replace(old, new, 1))
    found = faults(page, page.parent)
    assert len(found) == 1 and re.search(rf"^{words}", found[0]), found
