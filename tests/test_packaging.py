"""The wheel that is built from this tree, and the versions that are pinned for it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import topogen

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel):
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == {"topogen", "topogen_torch", f"topogen_nn-{topogen.__version__}.dist-info"}


def test_the_wheel_holds_every_module_and_no_leavings(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(base))
        for base, package in ((ROOT, "topogen"), (ROOT / "adapters", "topogen_torch"))
        for path in (base / package).rglob("*.py")
    }
    assert sources <= packed
    assert not [name for name in packed if "__pycache__" in name or name.endswith((".pyc", ".nbc", ".nbi"))]


def test_the_wheel_has_the_command_and_the_licence(wheel):
    names = wheel.namelist()
    (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert "topogen = topogen._cli:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_folder_of_the_adapters_is_no_package():
    assert (ROOT / "adapters" / "topogen_torch" / "__init__.py").exists()
    assert not (ROOT / "adapters" / "__init__.py").exists()


def direct_dependencies(project):
    """Requirements of the core, of every extra and of the build, the project's own name left out."""
    extras = project["project"]["optional-dependencies"].values()
    texts = chain(project["project"]["dependencies"], project["build-system"]["requires"], *extras)
    requirements = {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}
    requirements.pop("topogen-nn", None)
    return requirements


def pins(text):
    """{name: version} of the lines ``name==version``; any other line that is no comment is an error."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    matches = {line: re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line) for line in lines if line}
    assert all(matches.values()), [line for line, match in matches.items() if not match]
    return {canonicalize_name(match[1]): match[2] for match in matches.values()}


def test_every_direct_dependency_is_pinned_within_its_range(project):
    pinned = pins((ROOT / "constraints.txt").read_text())
    required = direct_dependencies(project)
    assert set(required) <= set(pinned)
    for name, requirement in required.items():
        assert requirement.specifier.contains(pinned[name]), requirement
    assert pinned["torch"] == "2.13.0"


def test_a_pin_that_is_missing_or_loose_is_seen(project):
    assert pins("torch==2.13.0  # one known build\n\n# nothing\n") == {"torch": "2.13.0"}
    with pytest.raises(AssertionError, match="numpy>=2"):
        pins("numpy>=2\n")
    assert {"numpy", "torch", "hypothesis", "hatchling"} <= set(direct_dependencies(project))


def test_the_name_on_pypi_that_belongs_to_others_is_not_recommended():
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("topogen/**/*.py")]:
        assert not re.search(r"pip install ['\"]?topogen(?!-nn)", path.read_text()), path
