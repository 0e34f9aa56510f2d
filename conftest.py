"""What every test run shares: snippets in pages are tests; what a machine lacks is skipped with a reason."""

import os

# Nothing here asks the network or a screen for anything. Both are read when the libraries are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from sybil import Sybil

from tools.book import PAGES
from tools.snippets import prepare, restore, snippets

# Every page is collected; README.md also stands in other folders, which `testpaths` leaves out.
pytest_collect_file = Sybil([snippets], patterns=PAGES, setup=prepare, teardown=restore).pytest()


def pytest_configure(config: pytest.Config) -> None:
    """Hide a GPU from tests that are not about one: what they compare bit by bit is what a processor computes."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose machine is missing."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use, and pytest -m gpu")
    if item.get_closest_marker("network") and "network" not in item.config.option.markexpr:
        pytest.skip("needs the network: HF_HUB_OFFLINE=0 pytest -m network")
