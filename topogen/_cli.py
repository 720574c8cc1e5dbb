"""The ``topogen`` command. Adapters add subcommands through the entry points "topogen.commands"."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from typer.main import get_command

from topogen._catalogue import entry_of, family_named
from topogen._claims import CONNECTIONS, shown
from topogen._draw import draw as draw_topology
from topogen._generate import generate as generate_topology
from topogen._parse import spec_from_text
from topogen._spec import AbstractSpec
from topogen._topology import LazyLayers, Topology, pattern_bytes
from topogen._verify import verify_watched
from topogen._version import __version__
from topogen.errors import ClaimError, SpecError, TopogenError
from topogen.io import load, save
from topogen.specs import ALL_SPECS

__all__ = ["app", "main"]

_BROKEN, _BAD_INPUT, _INTERRUPTED, _CLOSED_PIPE = 1, 2, 130, 141
_PATIENCE = 2.0  # seconds before a progress bar appears
_Step = Callable[..., None]
# the base of typer's errors about what was typed; which module defines it depends on typer's version
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="topogen",
    help="Sparse neural-network topologies: generated exactly, verified by measuring.",
    epilog="A SPEC is an expression in quotes: 'RadixNet(systems=[[10, 10]], widths=[8, 3, 1])'. "
    "Exit codes: 0 all is well, 1 a claim is broken, 2 bad input.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Source = Annotated[str, typer.Argument(metavar="FILE|SPEC", help="A .npz file of topogen's, or a spec in quotes.")]
_Rng = Annotated[int | None, typer.Option("--rng", metavar="INT", help="Seed; random families need one.")]
_MANY_LAYERS = (
    "Layers to build at once, in threads; all are then kept in memory. Pays for many layers. The result is the same."
)
_MANY_MEASURES = "Layers of a spec to build at once, and measures to take at once, in threads. The result is the same."


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"topogen {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_families(
    family: Annotated[str | None, typer.Argument(metavar="FAMILY", help="One family, in full.")] = None,
) -> None:
    """Show the families: parameters, what they may be, and when a spec is refused."""
    if family is None:
        print("\n\n".join(str(entry_of(known)) for known in ALL_SPECS))
        return
    entry = entry_of(family_named(family))
    print(f"{entry.call}\n\n{entry.summary}\n\n{entry.parameters}\n\n{entry.refused}\n\nFor example:\n")
    if entry.example is not None:
        _print_table(_description_of_spec(entry.example))


@app.command()
def generate(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A spec in quotes.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.npz", help="Where to; replaces an existing file.")],
    rng: _Rng = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help=_MANY_LAYERS)] = 1,
) -> None:
    """Build a topology and save it, layer by layer."""
    net = _built(spec_from_text(spec), rng, lazy=True, jobs=jobs)
    connections = 0
    with _progress("building" if jobs == 1 else "writing", len(net)) as step:

        def build(k: int) -> Any:
            nonlocal connections
            layer = net.layers[k]
            connections += layer.nnz
            step()
            return layer

        save(Topology(LazyLayers(net.sizes, build), spec=net.spec, seed=net.seed), out)
    print(f"wrote {str(out)!r}: sizes {shown(net.sizes)}, {connections:,} connections, {out.stat().st_size:,} bytes")


@app.command()
def verify(
    source: _Source,
    rng: _Rng = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help=_MANY_MEASURES)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure a topology and compare it with what its spec promises; exit code 1 if a claim is broken."""
    net = _topology(source, rng, jobs=jobs)
    with _progress("verifying") as step, _parallel(jobs):
        report = verify_watched(net, None, lambda name: step(f"verifying: {name}"))
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        verdicts = [row.holds for row in report if row.holds is not None]
        print(report)
        print(f"\n{sum(verdicts)} of {len(verdicts)} claims held" if verdicts else "\nnothing was promised")
    if report.holds is False:
        raise typer.Exit(_BROKEN)


@app.command()
def info(source: _Source) -> None:
    """Say what a file holds, or what a spec describes, without building it."""
    if _is_spec(source):
        rows = _description_of_spec(spec_from_text(source))
    else:
        net = _topology(source, None)
        seed = "none" if net.seed is None else " ".join(repr(net.seed).split())
        rows = [("file", f"{source!r}, {Path(source).stat().st_size:,} bytes")]
        rows += _description(net.sizes, [layer.nnz for layer in net], seed, net.spec, [row.size for row in net.relays])
    _print_table(rows)


@app.command()
def draw(
    source: _Source,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PICTURE", help="Where to: a .png or .svg file.")],
    kind: Annotated[str, typer.Option(metavar="spy|layered", help="Layer patterns, or the layered graph.")] = "spy",
    rng: _Rng = None,
) -> None:
    """Draw a topology."""
    net = _topology(source, rng, lazy=True)
    with _progress("drawing"):
        draw_topology(net, out, kind=kind)
    print(f"wrote {str(out)!r}")


def _is_spec(source: str) -> bool:
    if not source.endswith(".npz") and "(" not in source:
        raise SpecError(f"The argument must be a .npz file or a spec such as 'Dense(sizes=[4, 2])'. Got {source!r}.")
    return not source.endswith(".npz")


def _topology(source: str, rng: int | None, *, lazy: bool = False, jobs: int = 1) -> Topology:
    """Return the topology of a file or of a spec."""
    if _is_spec(source):
        return _built(spec_from_text(source), rng, lazy=lazy, jobs=jobs)
    if rng is not None:
        raise SpecError(f"The '--rng' option belongs to a spec: a file has its own seed. Got {rng} and {source!r}.")
    with _progress("reading"):
        return load(source)


def _built(spec: AbstractSpec, rng: int | None, *, lazy: bool, jobs: int) -> Topology:
    """Return the topology of a spec; what is built several layers at once is not lazy."""
    with _progress("building"), _parallel(jobs):
        return generate_topology(spec, rng=rng, lazy=lazy and jobs == 1)


def _parallel(jobs: int) -> AbstractContextManager[Any]:
    if jobs == 1:
        return nullcontext()
    import joblib  # pyright: ignore[reportMissingTypeStubs]  # here, so that the command answers at once

    return joblib.parallel_config(backend="threading", n_jobs=jobs)


def _description_of_spec(spec: AbstractSpec) -> list[tuple[str, str]]:
    counts = next((claim.bound for claim in spec.claims() if claim.measure == CONNECTIONS), None)
    return _description(spec.sizes, counts, "needed: --rng" if spec.is_random else "not needed", spec)


def _description(
    sizes: tuple[int, ...],
    counts: Sequence[int] | None,
    seed: str,
    spec: AbstractSpec | None,
    relays: Sequence[int] = (),
) -> list[tuple[str, str]]:
    """Return name and value of what `info` prints.

    `counts` are the connections of each layer, if they are known, `relays` the relays of each layer of nodes.
    """
    rows = [("spec", "none" if spec is None else repr(spec)), ("sizes", shown(sizes)), ("layers", str(len(sizes) - 1))]
    if counts is None:
        rows.append(("connections", "known once it is built"))
    else:
        shapes = list(zip(sizes[:-1], sizes[1:], strict=True))
        density = sum(counts) / sum(n_in * n_out for n_in, n_out in shapes)
        memory = sum(pattern_bytes(*shape, nnz) for shape, nnz in zip(shapes, counts, strict=True))
        rows += [("connections", f"{sum(counts):,} = {shown(tuple(counts))}"), ("density", f"{density:.6g}")]
        rows.append(("memory", f"{memory:,} bytes"))
    if any(relays):
        rows.append(("relays", f"{sum(relays):,} = {shown(tuple(relays))}, which pass one input on"))
    rows.append(("seed", seed))
    claims = () if spec is None else spec.claims()
    lines = [f"{claim}  [{claim.source}]" for claim in claims] or ["none"]
    return rows + list(zip(["claims", *[""] * (len(lines) - 1)], lines, strict=True))


def _print_table(rows: Sequence[tuple[str, str]]) -> None:
    indent = max(len(name) for name, _ in rows) + 2
    print("\n".join(f"{name:<{indent}}{value}" for name, value in rows))


@contextmanager
def _progress(description: str, total: int | None = None) -> Generator[_Step]:
    """Show a progress bar on stderr once the block has taken a while.

    Yields what advances it by one of `total` and, given a text, says what comes now. Where stderr is no terminal, one
    line says what is going on.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(description, total=total)

    def step(now: str | None = None) -> None:
        progress.update(task, advance=1, description=now)

    # a thread of its own, since a single step can take longer than the patience
    late = threading.Timer(
        _PATIENCE,
        progress.start if console.is_terminal else lambda: console.print(f"{progress.tasks[0].description} ..."),
    )
    late.daemon = True
    late.start()
    try:
        yield step
    finally:
        late.cancel()
        late.join()
        if console.is_interactive:
            progress.stop()


def _add_adapters() -> None:
    """Let every installed adapter add its commands; one that fails costs a line, never the core's commands."""
    for entry in entry_points(group="topogen.commands"):
        try:
            entry.load()(app)
        except Exception as error:  # an adapter can fail in any way
            _complain(f"the commands of {entry.name} are missing: {type(error).__name__}: {error}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; errors are one line on stderr.

    Exit codes: 0 all is well, 1 a claim is broken, 2 bad input, 130 Ctrl-C, 141 the reader of the output went away.
    """
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure"):  # not where a test has replaced it
        stdout.reconfigure(errors="backslashreplace")  # names of files may hold what the terminal cannot show
    try:
        _add_adapters()
        # not app(): it would turn errors into tracebacks and boxes of its own
        with get_command(app).make_context("topogen", arguments or ["--help"]) as context:
            context.command.invoke(context)
        stdout.flush()
    except typer.Exit as ending:
        return ending.exit_code
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "topogen"
        return _complain(f"{error.format_message().rstrip('.')}. See '{command} --help'.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # so that the interpreter's own flush is quiet
        return _CLOSED_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except ClaimError as error:
        return _complain(str(error), _BROKEN)
    except OSError as error:
        return _complain(
            f"{error.strerror}: {str(error.filename)!r}" if error.filename else str(error.strerror or error)
        )
    except MemoryError:
        return _complain("the memory is used up.")
    except TopogenError as error:
        return _complain(str(error))
    return 0


def _complain(message: str, code: int = _BAD_INPUT) -> int:
    print(f"topogen: {' '.join(message.split())}", file=sys.stderr)
    return code
