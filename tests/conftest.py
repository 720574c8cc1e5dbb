"""What all tests share: hypothesis profiles, the report header, the registry of families, the real data."""

from __future__ import annotations

import os
import signal
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from topogen import _spec

# The default draws the same examples every time, so that no run fails by chance or by a slow machine; `thorough` (with
# --hypothesis-profile) looks for new ones.
settings.register_profile(
    "reproducible", derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("reproducible")


def pytest_configure() -> None:
    """Take Ctrl-C where whoever started the tests ignores it, as a shell does for jobs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    versions = []
    for name in ("numpy", "scipy", "numba", "hypothesis", "torch"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    data = os.environ.get("TOPOGEN_DATA", "not set, tests on the real data sets are skipped")
    return [f"versions: {', '.join(versions)}", f"TOPOGEN_DATA: {data}"]


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[_spec.AbstractSpec]]:
    """The registry of families, for the test's own: what the test registers is gone after it."""
    registry = dict(_spec._FAMILIES)
    monkeypatch.setattr(_spec, "_FAMILIES", registry)
    return registry


@pytest.fixture
def data_dir() -> Path:
    """The folder of the real data sets, which $TOPOGEN_DATA names."""
    folder = os.environ.get("TOPOGEN_DATA")
    if not folder:
        pytest.skip("the environment variable TOPOGEN_DATA names no folder with the real data sets")
    return Path(folder)
