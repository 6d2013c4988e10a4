"""Settings for all tests.

The models are tiny, so one thread each is fastest, and parallel test workers do not compete for cores.
"""

import os
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; no test needs the hub
os.environ["RAY_AUTH_MODE"] = "token"  # before Ray is imported; its clusters listen on all interfaces
os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))

# A setting of the user's own, glibc's default, keeps commands from changing the allocator of the tests' processes.
os.environ.setdefault("MALLOC_ARENA_TEST", "8")

import pytest
import torch
from helpers.headless_browser import ARGUMENTS, CHROMIUM
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a slow machine must not fail a test
settings.load_profile("untimed")
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that the tests start


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield a headless Chromium; skip the test if Chromium or playwright is missing."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()
