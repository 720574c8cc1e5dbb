"""The command, as its user meets it: what it prints, its exit codes, one line for every error, and no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

import topogen as tg
from topogen import _cli

RADIX = "RadixNet(systems=[[10, 10]], widths=[8, 3, 1])"
RANDOM = "RandomBiregular(sizes=[8, 4], fan_in=2)"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_cli, "_add_adapters", lambda: None)
    monkeypatch.setattr(_cli, "_PATIENCE", 60.0)  # a busy machine is no reason for a progress bar
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def runner(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ending:
            _cli.main(arguments)
        captured = capsys.readouterr()
        return int(ending.value.code or 0), captured.out, captured.err

    return runner


def spawn(*arguments: str, start: str = "", stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start the command in a process of its own, after the statements `start`."""
    script = f"from topogen import _cli\n{textwrap.dedent(start)}\n_cli.main()"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


# ---- what it does


def test_generate_info_verify_draw(run, folder):
    code, out, err = run("generate", RADIX, "--out", "net.npz")
    size = (folder / "net.npz").stat().st_size
    assert (code, err) == (0, "")
    assert out == f"wrote 'net.npz': sizes (800, 300, 100), 27,000 connections, {size:,} bytes\n"
    net = tg.generate(tg.spec_from_text(RADIX))
    assert tg.load("net.npz") == net

    code, out, err = run("info", "net.npz")
    assert (code, err) == (0, "")
    described = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert described == {
        "file": f"'net.npz', {size:,} bytes",
        "spec": repr(net.spec),
        "sizes": "(800, 300, 100)",
        "layers": "2",
        "connections": "27,000 = (24000, 3000)",
        "density": "0.1",
        "memory": f"{sum(p.indptr.nbytes + p.indices.nbytes + p.data.nbytes for p in net):,} bytes",
        "seed": "none",
        "claims": f"sizes == (800, 300, 100)  [{net.spec.claims()[0].source}]",
    }
    assert out.count("]\n") == len(net.spec.claims())

    code, out, err = run("verify", "net.npz")
    assert (code, err) == (0, "")
    assert out == f"{tg.verify(net)}\n\n8 of 8 claims held\n"

    for kind, picture in (("spy", "a.png"), ("layered", "a.svg")):
        assert run("draw", "net.npz", "--out", picture, "--kind", kind) == (0, f"wrote '{picture}'\n", "")
        assert (folder / picture).stat().st_size > 5000


def test_info_and_draw_show_relays(run, folder):
    net = tg.from_networkx(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]))
    assert [row.tolist() for row in net.relays] == [[], [1], [1], []]
    tg.save(net, "relays.npz")
    code, out, err = run("info", "relays.npz")
    assert (code, err) == (0, "")
    assert "relays       2 = (0, 1, 1, 0), which pass one input on\n" in out
    for kind in ("spy", "layered"):
        assert run("draw", "relays.npz", "--out", f"{kind}.svg", "--kind", kind)[0] == 0
        assert (folder / f"{kind}.svg").stat().st_size > 5000


def test_seeds_make_the_topology(run):
    for seed in ("7", "8", "340282366920938463463374607431768211456"):
        assert run("generate", RANDOM, "--rng", seed, "--out", f"{seed}.npz")[0] == 0
        assert tg.load(f"{seed}.npz") == tg.generate(tg.spec_from_text(RANDOM), rng=int(seed))
    assert tg.load("7.npz") != tg.load("8.npz")
    assert "seed         SeedSequence( entropy=7, )\n" in run("info", "7.npz")[1]


def test_info_of_a_spec_builds_nothing(run, monkeypatch):
    monkeypatch.setattr(tg.RadixNet, "layer", None)
    code, out, err = run("info", "RadixNet(systems=[[1000, 1000], [1000, 1000]])")
    assert (code, err) == (0, "")
    assert "4,000,000,000 = (4 times 1000000000)" in out
    assert "paths per pair == 1000000" in out
    assert "known once it is built" in run("info", f"Trim({RANDOM}, [3, 3])")[1]
    assert "needed: --rng" in run("info", RANDOM)[1]


def test_verify_says_which_claims_are_broken(run):
    net = tg.generate(tg.RadixNet(systems=[[2, 2]]))
    moved = net[0].toarray()
    moved[0] = [True, True, False, False]
    tg.save(tg.Topology([moved, net[1]], spec=net.spec), "moved.npz")
    code, out, err = run("verify", "moved.npz")
    assert (code, err) == (1, "")
    assert "7 of 8 claims held" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith(" NO")] == ["fan-in"]
    code, out, err = run("verify", "moved.npz", "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["holds"] is False
    assert report == json.loads(json.dumps(tg.verify(tg.load("moved.npz")).to_dict()))


def test_verify_without_promises(run):
    tg.save([np.eye(3)], "foreign.npz")
    code, out, _ = run("verify", "foreign.npz")
    assert code == 0
    assert out.endswith("\nnothing was promised\n")
    assert json.loads(run("verify", "foreign.npz", "--json")[1])["holds"] is None
    assert run("verify", RANDOM, "--rng", "1")[0] == 0


def test_existing_files_are_replaced(run, folder):
    for size in ("2", "3"):
        assert run("generate", f"Dense(sizes=[{size}, 2])", "-o", "net.npz")[0] == 0
    assert tg.load("net.npz").sizes == (3, 2)
    assert [path.name for path in folder.iterdir()] == ["net.npz"]


def test_list_shows_every_family(run):
    code, out, err = run("list")
    assert (code, err) == (0, "")
    entries = dict(zip(tg.ALL_SPECS, out.split("\n\n"), strict=True))
    for family, entry in entries.items():
        assert entry.startswith(f"{family.__name__}(")
        assert len(entry.splitlines()) == 4
    assert entries[tg.Dense].splitlines() == [
        "Dense(sizes=...)",
        "    Every neuron joined to every neuron of the next layer: the fully connected baseline.",
        "    sizes: sequence of at least 2 ints >= 1",
        "    Refused if there are fewer than two sizes or one is below 1.",
    ]


def test_list_shows_one_family_with_its_claims(run):
    code, out, err = run("list", "Dense")
    assert (code, err) == (0, "")
    assert out.startswith("Dense(sizes=...)\n\nEvery neuron joined")
    assert "\n\nsizes : sequence of at least 2 ints >= 1\n    (n_0, ..., n_L).\n\nRefused if " in out
    assert out.endswith(run("info", "Dense(sizes=[784, 300, 10])")[1])
    for claim in tg.Dense(sizes=[784, 300, 10]).claims():
        assert f"{claim}  [{claim.source}]" in out


def test_jobs_change_nothing_but_the_time(run, folder):
    spec = "Repeat(ErdosRenyi(sizes=[20, 30, 20], density=0.2), 3)"
    for jobs in ("1", "2", "5"):
        code, out, _ = run("generate", spec, "--rng", "7", "--jobs", jobs, "-o", f"{jobs}.npz")
        assert (code, out.split(":")[0]) == (0, f"wrote '{jobs}.npz'")
    assert (folder / "1.npz").read_bytes() == (folder / "2.npz").read_bytes() == (folder / "5.npz").read_bytes()
    assert run("verify", spec, "--rng", "7", "-j", "2") == run("verify", spec, "--rng", "7")


def test_more_jobs_build_several_layers_at_once(run, monkeypatch):
    barrier, dense = threading.Barrier(2, timeout=5), tg.Dense.layer

    def build(self, k, seed=None):
        barrier.wait()
        return dense(self, k, seed)

    monkeypatch.setattr(tg.Dense, "layer", build)
    assert run("generate", "Dense(sizes=[2, 2, 2])", "--jobs", "2", "-o", "net.npz")[0] == 0
    assert run("verify", "Dense(sizes=[2, 2, 2])", "--jobs", "2")[0] == 0


def test_version_and_help(run):
    assert run("--version") == (0, f"topogen {tg.__version__}\n", "")
    code, out, err = run()
    assert (code, err) == (0, "")
    assert (0, out, "") == run("--help")
    for command in ("list", "generate", "verify", "info", "draw"):
        assert command in out
        assert run(command, "--help")[0] == 0


# ---- bad input is one line and exit code 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "Missing argument 'SPEC'. See 'topogen generate --help'."),
        (["generate", RADIX], "Missing option '--out' / '-o'. See 'topogen generate --help'."),
        (["generate", RANDOM, "--out", "a.npz", "--rng", "x"], "Invalid value for '--rng': "),
        (["generate", RANDOM, "--out", "a.npz", "--rng", "-1"], "The 'rng' parameter of generate must be an int >= 0"),
        (["generate", RANDOM, "--out", "a.npz"], "The 'rng' parameter of generate must be given for RandomBiregular"),
        (["generate", RADIX, "--out", "a.txt"], "The 'path' parameter of save must be a path that ends in '.npz'."),
        (["generate", RADIX, "--out", "no/a.npz"], "No such file or directory: 'no/a.npz'"),
        (["generate", RADIX, "--out", "folder.npz"], "Is a directory: 'folder.npz'"),
        (
            ["generate", "Dens(sizes=[2, 2])", "--out", "a.npz"],
            "A spec must name a known family (the nearest is Dense).",
        ),
        (
            ["generate", "Dense(sizes=[2\n])", "--out", "a.npz"],
            "The 'sizes' parameter of Dense must be a sequence of at",
        ),
        (["generate", "Dense(sizes=[10**9])", "--out", "a.npz"], "A spec must hold families"),
        (
            ["generate", "Dense(sizes=[1000000000, 1000000000])", "--out", "a.npz"],
            "must describe something that fits in",
        ),
        (["verify", "Dense(sizes=[1000000000, 1000000000])"], "must describe something that fits in memory. It needs"),
        (["verify", "nothere.npz"], "No such file or directory: 'nothere.npz'"),
        (["verify", "folder.npz"], "Is a directory: 'folder.npz'"),
        (["verify", "damaged.npz"], "The file 'damaged.npz' is not a topology that can be read: it is damaged, or no"),
        (
            ["verify", "net.npz", "--rng", "3"],
            "The '--rng' option belongs to a spec: a file has its own seed. Got 3 and",
        ),
        (
            ["info", "net.txt"],
            "The argument must be a .npz file or a spec such as 'Dense(sizes=[4, 2])'. Got 'net.txt'.",
        ),
        (
            ["info", "RadixNet"],
            "The argument must be a .npz file or a spec such as 'Dense(sizes=[4, 2])'. Got 'RadixNet'.",
        ),
        (["draw", "net.npz", "--out", "a.gif"], "The 'path' parameter of draw must be a path that ends in '.png' or"),
        (
            ["draw", "net.npz", "--out", "a.png", "--kind", "heat"],
            "The 'kind' parameter of draw must be 'spy' or 'layered'.",
        ),
        (["draw", "net.npz", "--out", "no/a.png"], "No such file or directory: 'no/a.png'"),
        (["list", "RadixNett"], "The argument of list must be a family (the nearest is RadixNet). Got 'RadixNett'."),
        (["generate", RADIX, "--out", "a.npz", "--jobs", "0"], "Invalid value for '--jobs' / '-j': "),
        (["nocommand"], "No such command 'nocommand'. See 'topogen --help'."),
        (["--nooption"], "No such option: --nooption"),
        (["info", "net.npz", "more"], "Got unexpected extra argument"),
    ],
)
def test_bad_input(arguments, message, run, folder):
    (folder / "folder.npz").mkdir()
    (folder / "damaged.npz").write_bytes(b"hello")
    tg.save([[1]], "net.npz")
    before = sorted(folder.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("topogen: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_files_that_may_not_be_read_or_written(run, folder):
    tg.save([[1]], "net.npz")
    Path("net.npz").chmod(0)
    assert run("info", "net.npz") == (2, "", "topogen: Permission denied: 'net.npz'\n")
    folder.chmod(0o500)
    assert run("generate", RADIX, "-o", "a.npz") == (2, "", "topogen: Permission denied: 'a.npz'\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (tg.errors.GenerationError("no luck\nat all."), 2, "topogen: no luck at all.\n"),
        (
            tg.errors.ClaimError("paths == 1 was promised, measured 2."),
            1,
            "topogen: paths == 1 was promised, measured 2.\n",
        ),
        (PermissionError(13, "Permission denied", "a.npz"), 2, "topogen: Permission denied: 'a.npz'\n"),
        (OSError(28, "No space left on device"), 2, "topogen: No space left on device\n"),
        (OSError("odd"), 2, "topogen: odd\n"),
        (MemoryError(), 2, "topogen: the memory is used up.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_from_inside(error, code, message, run, monkeypatch):
    def fail(_source):
        raise error

    monkeypatch.setattr(_cli, "load", fail)
    assert run("verify", "net.npz") == (code, "", message)


def test_bugs_are_not_hidden(monkeypatch):
    def fail(_source):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(_cli, "load", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        _cli.main(["info", "net.npz"])


# ---- adapters


def test_an_adapter_adds_commands(run, folder, monkeypatch):
    (folder / "mine_commands.py").write_text(
        "def register(app):\n    @app.command()\n    def mine(word: str):\n        print(word * 2)\n"
    )
    monkeypatch.setattr(_cli.app, "registered_commands", list(_cli.app.registered_commands))
    entry = EntryPoint("mine", "mine_commands:register", "topogen.commands")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(_cli, "_add_adapters", _ADD_ADAPTERS)
        patch.setattr(_cli, "entry_points", lambda group: [entry] if group == "topogen.commands" else [])
        assert run("mine", "ab") == (0, "abab\n", "")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nonesuch_module:register", "ModuleNotFoundError: No module named 'nonesuch_module'"),
        ("json:nonesuch", "AttributeError: module 'json' has no attribute 'nonesuch'"),
        ("math:sqrt", "TypeError: must be real number, not Typer"),
    ],
)
def test_a_broken_adapter_costs_one_line(target, message, run, monkeypatch):
    entry = EntryPoint("theirs", target, "topogen.commands")
    monkeypatch.setattr(_cli, "_add_adapters", _ADD_ADAPTERS)
    monkeypatch.setattr(_cli, "entry_points", lambda group: [entry])
    line = f"topogen: the commands of theirs are missing: {message}\n"
    assert run("--version") == (0, f"topogen {tg.__version__}\n", line)


def test_the_entry_points_are_declared():
    (script,) = entry_points(group="console_scripts", name="topogen")
    assert script.load() is _cli.main
    assert "topogen_torch" in {entry.name for entry in entry_points(group="topogen.commands")}


# ---- processes: imports, signals, pipes


def loaded_by(*arguments: str, start: str = "") -> set[str]:
    """Return the modules that the command has loaded when it ends."""
    process = spawn(*arguments, start=f"{start}\nimport atexit, sys\natexit.register(lambda: print(*sys.modules))")
    out, err = process.communicate()
    assert process.returncode == 0, err
    return set(out.splitlines()[-1].split())


def test_the_command_imports_no_torch():
    loaded = loaded_by("--help")
    assert "topogen._cli" in loaded
    assert not {"torch", "numba", "networkx", "sympy", "matplotlib", "joblib"} & loaded


def test_the_detector_of_torch_detects():
    start = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')"
    assert "torch" in loaded_by("--help", start=start)


def test_importing_topogen_loads_neither_typer_nor_rich():
    script = "import sys, topogen; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "topogen" in out
    assert not {"typer", "rich", "topogen._cli", "matplotlib", "numba", "torch"} & set(out)


_ALONE = "_cli._add_adapters = lambda: None"
_SLOW = f"""
{_ALONE}
import time
import topogen as tg
def layer(self, k, seed=None):
    print("building", flush=True)
    time.sleep(60)
tg.Dense.layer = layer
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_an_interrupt_is_quiet_and_leaves_nothing(folder):
    (folder / "net.npz").write_text("old")
    process = spawn("generate", "Dense(sizes=[2, 2])", "--out", "net.npz", start=_SLOW)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("building"):
        pass
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "wrote" not in out
    assert [path.name for path in folder.iterdir()] == ["net.npz"]
    assert (folder / "net.npz").read_text() == "old"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "in the middle"])
def test_a_closed_pipe_is_quiet(lines):
    report = f"type('Report', (), dict(to_dict=lambda self: ['x' * 70] * {lines}, holds=True))()"
    reader, writer = os.pipe()
    os.close(reader)
    start = f"{_ALONE}\n_cli.verify_watched = lambda *_: {report}"
    process = spawn("verify", "Dense(sizes=[2, 2])", "--json", start=start, stdout=writer)
    os.close(writer)
    _, err = process.communicate()
    assert (process.returncode, err) == (141, "")


# ---- progress


def test_what_takes_long_says_so_once(capsys, monkeypatch):
    monkeypatch.setattr(_cli, "_PATIENCE", 0.01)
    with _cli._progress("building", 2) as step:
        time.sleep(0.3)
        step()
    assert capsys.readouterr().err == "building ...\n"


def test_verify_says_what_it_measures(run, monkeypatch):
    monkeypatch.setattr(_cli, "_PATIENCE", 0.2)
    slow = tg.Measure("the moon", lambda net: time.sleep(1))
    claim = tg.Claim(measure=slow, bound=None, source="an example")
    monkeypatch.setattr(tg.Dense, "claims", lambda self: (claim,))
    code, _, err = run("verify", "Dense(sizes=[2, 2])")
    assert (code, err) == (0, "verifying: the moon ...\n")


def test_what_is_quick_says_nothing(capsys):
    with _cli._progress("building") as step:
        step()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(_cli, "_PATIENCE", 0.01)
    monkeypatch.setattr(
        _cli, "Console", lambda stderr: _TERMINAL(stderr=stderr, force_terminal=True, force_interactive=True)
    )
    with _cli._progress("building", 2) as step:
        time.sleep(0.3)
        step("writing")
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "building" in err
    assert "writing" in err
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1  # the cursor comes back


_TERMINAL = _cli.Console
_ADD_ADAPTERS = _cli._add_adapters
