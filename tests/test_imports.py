"""Who may import whom: a chapter leans on earlier ones, the engine on NumPy and Numba, nobody on pickle."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.source import ROOT

# Which of our own folders a folder may import. Tests may import everything.
EVERYTHING_TAUGHT = {"chapters", "corpora", "engine", "explanations", "fine-tuning"}
MAY_IMPORT = {
    "corpora": {"corpora"},
    "chapters": {"chapters", "corpora"},
    "engine": {"engine"},
    "explanations": {"explanations", "chapters", "corpora"},
    "fine-tuning": {"fine-tuning", "chapters", "corpora"},
    "main.py": EVERYTHING_TAUGHT,
    "notebooks": EVERYTHING_TAUGHT | {"main"},
    "benchmarks": EVERYTHING_TAUGHT | {"benchmarks", "main"},
    "models": EVERYTHING_TAUGHT | {"main"},
    "tools": {"tools"},
}
OURS = set(MAY_IMPORT) - {"main.py"} | {"main", "tests", "conftest"}
ENGINE_MAY_IMPORT = {"engine", "numpy", "numba", "regex"} | sys.stdlib_module_names
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLE_CALLS = r"torch\.(load|save|serialization)\b|allow_pickle=True|\b(all_)?gather_object\b|\w+_object_list\b"


def imports(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and dotted name of everything a module imports, relative names made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Two dots mean the folder above the module's own.
            stem = name.split("/")[: -node.level] if node.level else []
            stem += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*stem, alias.name])) for alias in node.names)


def chapter_number(name: str) -> float:
    """Return the number of a chapter's module; what belongs to no chapter comes after all of them."""
    match = re.match(r"chapters[/.]ch(\d+)", name)
    return int(match[1]) if match else float("inf")


def faults(name: str, source: str) -> list[str]:
    """Return what a module imports or calls against the rules."""
    folder, tree, found = name.split("/")[0], ast.parse(source), []
    for line, imported in imports(name, tree):
        top = imported.split(".")[0]
        # The modules of one chapter may import each other; Python itself refuses a circle.
        upwards = top == folder == "chapters" and chapter_number(imported) > chapter_number(name)
        foreign = folder == "engine" and top not in ENGINE_MAY_IMPORT
        if upwards or foreign or top in PICKLES or top in OURS - MAY_IMPORT[folder]:
            found.append(f"{name}:{line} must not import {imported}")

    # Only calls count: a page or a comment may speak of torch.load.
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if match := re.search(PICKLE_CALLS, ast.unparse(node)):
            found.append(f"{name}:{node.lineno} must not use {match[0]}: it unpickles")
    return found


def modules() -> list[str]:
    paths = [path for folder in MAY_IMPORT for path in sorted(ROOT.glob(f"{folder}/**/*.py"))]
    return [str(path.relative_to(ROOT)) for path in [*paths, ROOT / "main.py"]]


@pytest.mark.parametrize("name", modules())
def test_each_module_imports_only_what_stands_before_it(name: str):
    assert faults(name, (ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("chapters/ch05_attention.py", "from chapters.ch06_transformer_block import RMSNorm"),
        ("chapters/ch05_attention.py", "def f():\n    import chapters.ch09_inference"),
        ("chapters/ch05_attention.py", "from chapters import ch06_transformer_block"),
        ("chapters/ch05_attention.py", "from . import ch06_transformer_block"),
        ("chapters/ch05_attention.py", "from chapters.running_example import TOKENS"),
        ("chapters/ch05_attention.py", "import tools.book"),
        ("chapters/ch07_gpt_model.py", "import main"),
        ("chapters/figures/ch05_x.py", "from engine import Tensor"),
        ("corpora/stories.py", "from chapters.ch02_tokenization import BPETokenizer"),
        ("engine/matmul.py", "import torch"),
        ("engine/matmul.py", "from chapters import ch04_positional_encoding"),
        ("engine/matmul.py", "import transformers"),
        ("fine-tuning/lora.py", "from engine import Tensor"),
        ("main.py", "import benchmarks.measure"),
        ("benchmarks/bench_x.py", "from tools.book import main"),
        ("notebooks/05_attention.py", "import tests"),
        ("tools/book.py", "import chapters"),
        ("main.py", "import pickle"),
        ("chapters/ch08_training.py", "import torch\nx = torch.load('x')"),
        ("chapters/ch08_training.py", "import numpy as np\nx = np.load('x', allow_pickle=True)"),
        ("chapters/ch08_training.py", "import torch.distributed as dist\ndist.broadcast_object_list([1], src=0)"),
        ("chapters/ch08_training.py", "from torch.distributed import all_gather_object\nall_gather_object([], 1)"),
    ],
)
def test_each_forbidden_import_is_found(name: str, source: str):
    assert len(faults(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("chapters/ch07_gpt_model.py", "from chapters.ch07_pretrained import x\nimport torch, corpora"),
        ("chapters/figures/ch05_x.py", "from chapters.running_example import TOKENS"),
        ("engine/matmul.py", "import numpy, numba.core, regex, mmap\nfrom . import tensor"),
        ("chapters/ch05_attention.py", "from . import ch04_x\nfrom .ch03_embeddings import x"),
        ("fine-tuning/sft.py", "from . import lora\nfrom .lora import x\nfrom chapters import ch07"),
        ("main.py", "import chapters.ch08_training, engine"),
    ],
)
def test_allowed_imports_pass(name: str, source: str):
    assert faults(name, source) == []


def loaded_by(*command: str, code: int = 0) -> set[str]:
    """Return the modules that a Python command imports before it ends with the given exit code."""
    command = (sys.executable, "-X", "importtime", *command)
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == code, result.stderr[-500:]
    return set(re.findall(r"\|\s+([\w.]+)$", result.stderr, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["train", "--help"], 0), (["train", "--no-such-flag"], 2)]
)
def test_main_answers_before_it_loads_pytorch(arguments: list[str], code: int):
    loaded = loaded_by("main.py", *arguments, code=code)
    assert "argparse" in loaded and not loaded & {"torch", "numpy", "transformers", "matplotlib"}


def test_a_script_that_loads_too_early_would_be_seen(tmp_path: Path):
    (tmp_path / "early.py").write_text("import numpy, argparse\nargparse.ArgumentParser().parse_args()")
    assert "numpy" in loaded_by(str(tmp_path / "early.py"), "--help")
