"""What the documentation says: every family has a page, every name a place, every example runs."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import topogen as tg

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = ("topogen", "topogen.measures", "topogen.checks", "topogen.errors", "topogen.io", "topogen.kernels")
MODULES += ("topogen.io.graph_challenge", "topogen.testing")
MODULES += ("topogen_torch", "topogen_torch.init", "topogen_torch.testing")
FAMILIES = [family.__name__ for family in tg.ALL_SPECS]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_page_with_definition_claims_and_picture(family):
    page = (DOCS / "families" / f"{family.lower()}.md").read_text()
    assert page.startswith(f"# {family}\n")
    for needed in (
        f"```{{claims}} {family}(",
        f"```{{picture}} {family}(",
        "## Definition",
        "promise",
        "## Cost",
        "{doctest}",
    ):
        assert needed in page, needed
    index = (DOCS / "families" / "index.md").read_text()
    assert f"[{family}]({family.lower()}.md)" in index
    assert f"\n{family.lower()}\n" in index.split("{toctree}")[1]


def files_to_touch():
    """The paths of the numbered list in the how-to, patterns among them."""
    steps = re.findall(r"^\d+\. (.*?)(?=^\d+\. |^$)", (DOCS / "howto/add_a_family.md").read_text(), re.M | re.S)
    return [path for step in steps for path in re.findall(r"`([^`]*[./][^`]*)`", step)]


def test_how_to_add_a_family_names_files_that_exist_and_know_every_family():
    paths = files_to_touch()
    assert len(paths) >= 9
    for path in paths:
        if "<family>" in path:
            assert list(ROOT.glob(path.replace("<family>", "*"))), path
        else:
            assert (ROOT / path).is_file(), path
    for path in ("topogen/specs/__init__.py", "topogen/__init__.py", "topogen/testing.py", "docs/reference/topogen.md"):
        assert path in paths
        text = (ROOT / path).read_text()
        if path == "topogen/testing.py":
            text += "".join(file.read_text() for file in sorted((ROOT / "topogen").glob("_strategies_*.py")))
        assert [family for family in FAMILIES if not re.search(rf"\b{family}\b", text)] == [], path


@pytest.mark.parametrize("name", ["topogen", "topogen_torch"])
def test_every_public_name_is_in_the_reference(name):
    if name == "topogen_torch":
        pytest.importorskip("torch")
    package = importlib.import_module(name)
    page = (DOCS / "reference" / f"{name}.md").read_text()
    documented = set(re.findall(r"^\.\. (?:autoclass|autofunction|data):: (\w+)$", page, re.M))
    modules = {public for public in package.__all__ if inspect.ismodule(getattr(package, public))}
    assert documented == set(package.__all__) - modules
    for module in modules:
        assert f"automodule:: {name}.{module}\n" in page or (DOCS / "reference" / f"{module}.md").is_file(), module


def public_objects(module):
    """The module and its public classes and functions, wherever they are defined."""
    yield module.__name__, module
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            yield f"{module.__name__}.{name}", thing


def examples(thing, name):
    """The doctests in the docstring of `thing` and, for a class, of what it defines."""
    members = vars(thing).items() if inspect.isclass(thing) else ()
    texts = [(name, inspect.getdoc(thing))]
    texts += [(f"{name}.{key}", inspect.getdoc(member)) for key, member in members if not key.startswith("_")]
    parser = doctest.DocTestParser()
    for label, text in texts:
        if text and ">>>" in text:
            yield parser.get_doctest(text, {}, label, None, None)


def run_examples(tests):
    """Run doctests; return how many examples there were and what failed."""
    runner, said = doctest.DocTestRunner(), []
    for test in tests:
        runner.run(test, out=said.append)
    return runner.summarize(verbose=False).attempted, "".join(said)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    if name.startswith("topogen_torch"):
        pytest.importorskip("torch")
    module = importlib.import_module(name)
    _, failures = run_examples(test for label, thing in public_objects(module) for test in examples(thing, label))
    assert failures == ""


@pytest.mark.parametrize("module", [tg, tg.measures, tg.io], ids=lambda module: module.__name__)
def test_every_public_function_and_family_shows_an_example(module):
    wanted = [
        (label, thing) for label, thing in public_objects(module) if inspect.isroutine(thing) or thing in tg.ALL_SPECS
    ]
    assert wanted
    assert [label for label, thing in wanted if not list(examples(thing, label))] == []


def test_a_wrong_docstring_example_is_seen():
    def wrong():
        """Return two.

        >>> 1 + 1
        3
        """

    attempted, failures = run_examples(examples(wrong, "wrong"))
    assert attempted == 1
    assert "Expected:\n    3\nGot:\n    2" in failures


def code_blocks(text):
    """The python blocks of a Markdown text; console transcripts and other languages are left alone."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_code_blocks_are_found():
    assert code_blocks("a\n```python\nx = 1\n```\n```sh\nls\n```\n```python\ny\n```\n") == ["x = 1\n", "y\n"]


def test_the_readme_runs(tmp_path, monkeypatch):
    blocks = code_blocks((ROOT / "README.md").read_text())
    assert blocks
    if any("topogen_torch" in block for block in blocks):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
