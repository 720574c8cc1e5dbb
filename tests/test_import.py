"""What ``import topogen`` loads, seen from a process of its own, and a proof that the detector sees."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import topogen

LAZY = {"numba", "networkx", "sympy", "matplotlib", "hypothesis", "typer", "rich", "safetensors", "joblib", "dask"}
NEVER = {"torch", "topogen_torch"}


def loaded_by(statement):
    """The top-level packages that a fresh interpreter has loaded after `statement`."""
    code = (
        f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(process.stdout.splitlines()[-1]))


def test_importing_topogen_loads_numpy_and_scipy_and_nothing_else_that_is_large():
    loaded = loaded_by("import topogen")
    assert {"topogen", "numpy", "scipy"} <= loaded
    assert not loaded & (LAZY | NEVER)


def test_the_main_job_of_the_core_needs_no_framework():
    loaded = loaded_by(
        "import topogen as tg\nnet = tg.generate(tg.RadixNet(systems=[[2, 3]]))\ntg.verify(net).raise_if_broken()"
    )
    assert not loaded & NEVER


@pytest.mark.parametrize("statement", ["import networkx", "from rich.text import Text", "__import__('networkx.utils')"])
def test_the_detector_sees_what_is_loaded(statement):
    assert loaded_by(f"import topogen\ndef later():\n    {statement}\nlater()") & LAZY


def imported_packages(source):
    """The top-level packages that a source imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (part.value.partition(".")[0] for part in node.args if isinstance(part, ast.Constant))


def test_no_file_of_the_core_imports_a_framework_not_even_lazily():
    files = sorted(Path(topogen.__file__).parent.rglob("*.py"))
    assert len(files) > 15
    for path in files:
        assert not NEVER & set(imported_packages(path.read_text())), path


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "def later():\n    from torch.nn import Linear",
        "import importlib\nimportlib.import_module('topogen_torch.layers')",
        "import numpy, torch.cuda as cuda",
    ],
)
def test_the_scan_sees_every_kind_of_import(source):
    assert NEVER & set(imported_packages(source))


def test_testing_without_hypothesis_says_what_to_install():
    code = "import sys; sys.modules['hypothesis'] = None; import topogen.testing"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        "ImportError: topogen.testing needs hypothesis: pip install 'topogen-nn[testing]'."
    )
