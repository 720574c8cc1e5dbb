"""``python -m topogen_torch.bench``: what the block-sparse layers do on a graphics card, in one command.

It measures the card's own ceilings, checks every kernel against float64, looks for the card's launch settings, measures
layers of many sizes beside dense ones and beside torch's own block-sparse product, and whole training steps. torch,
triton, numpy and scipy suffice.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import topogen as tg
from topogen import checks
from topogen.errors import SpecError, TopogenError
from topogen.io import replacing

if TYPE_CHECKING:
    import torch

    from topogen_torch._gpu._results import Results
    from topogen_torch._gpu._stages import Outcomes

__all__ = ["main"]

_OWNER = "topogen_torch.bench"
_ON_CARD = {"sizes": "4096,2048,8192,1024", "blocks": "128,64,32,16", "sparsities": "50,75,90,95,99", "tokens": 8192}
_QUICK = {"sizes": "4096", "sparsities": "90"}
_INTERPRETED = {"sizes": "64", "blocks": "16", "sparsities": "50", "tokens": 16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the command line by default; ``--help`` lists them.

    Returns
    -------
    int
        0; 1 if a kernel fails or errs by more than it may; 2 if there is nothing to run on, or an option is refused.

    Examples
    --------
    >>> from topogen_torch.bench import main
    >>> main(["--blocks", "48"])
    2
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except TopogenError as error:
        print(f"topogen: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_OWNER}", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--device", default="cuda", help="cuda or cuda:1; cpu: tiny sizes, interpreted")
    parser.add_argument("--quick", action="store_true", help="4096 neurons at 90 %% only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file, as they come")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to this file, as they come")
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="measure the settings there are already")
    parser.add_argument("--sizes", metavar="N,N,..", help="neurons of a layer; 1024 to 8192")
    parser.add_argument("--blocks", metavar="B,B,..", help="16, 32, 64 or 128")
    parser.add_argument("--sparsities", metavar="P,P,..", help="per cent of the blocks that do not exist; 50 to 99")
    parser.add_argument("--tokens", type=int, metavar="N", help="rows of the activations; 8192")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="of the table; bfloat16")
    parser.add_argument("--budget", default="8m", metavar="TIME", help="90s, 8m: no case is begun after that; 8m")
    return parser


def _run(options: argparse.Namespace) -> int:
    on_card = options.device != "cpu"
    defaults: dict[str, Any] = (_ON_CARD | (_QUICK if options.quick else {})) if on_card else _INTERPRETED
    chosen = {name: value for name, value in vars(options).items() if value is not None}
    settings: dict[str, Any] = {
        "device": options.device,
        "sizes": _numbers("--sizes", chosen.get("sizes", defaults["sizes"]), low=16),
        "blocks": _blocks(chosen.get("blocks", defaults["blocks"])),
        "sparsities": _sparsities(chosen.get("sparsities", defaults["sparsities"])),
        "tokens": checks.integer(chosen.get("tokens", defaults["tokens"]), "--tokens", _OWNER, low=1),
        "dtype": chosen.get("dtype", "bfloat16" if on_card else "float32"),
        "budget": _seconds(options.budget),
        "tune": options.tune and on_card,
    }
    device = _device(options.device)
    from topogen_torch._gpu._results import Results
    from topogen_torch._gpu._workers import Workers

    results = Results(facts=_facts(device), settings=settings)
    print(", ".join(f"{name} {value}" for name, value in results.facts.items()), flush=True)
    files: dict[Path | None, Callable[[], str]] = {
        options.markdown: results.to_markdown,
        options.json: lambda: dumps(results.to_dict(), indent=1) + "\n",
    }

    def save() -> None:
        for path, text in files.items():
            if path is not None:
                with replacing(path) as file:
                    file.write(text().encode())

    save()  # a folder that cannot be written is found now
    try:
        with Workers(device) as workers:
            _measure(results, device, workers.outcomes, save)
    finally:  # what Ctrl-C leaves holds
        print(f"\n{results.to_markdown()}", flush=True)
        save()
    return 0 if results.holds else 1


def _measure(results: Results, device: torch.device, outcomes: Outcomes, save: Callable[[], None]) -> None:
    """Fill `results`, print and save each part as it comes."""
    from topogen_torch._gpu._stages import stages
    from topogen_torch._gpu._workers import Failure

    start, budget = perf_counter(), results.settings["budget"]
    for stage in stages(results, device):
        end = start + stage.until * budget
        for key, found in outcomes(stage.tasks, processes=stage.processes, seconds=stage.seconds, end=end):
            if isinstance(found, Failure):
                results.failures.append(f"{key}: {found.text}")
                _say(f"FAILED: {results.failures[-1]}")
            else:
                said = stage.take(found)
                if said:
                    _say(said)
            if found is not None:
                save()
        _say(f"{stage.name}: done after {perf_counter() - start:.0f} s")
    results.complete = not results.missing and bool(results.steps) and not results.failures


def _device(name: str) -> torch.device:
    """Return the device to run on; on the CPU, Triton is put into its interpreter before it is imported."""
    if name == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cuda", "cpu"):
        checks.refuse("--device", _OWNER, "cuda, cuda:1, ... or cpu", name)
    from topogen_torch._gpu._choose import has_triton, refuse_without_card

    if device.type == "cuda":
        device = refuse_without_card("--device", _OWNER, name)
        torch.cuda.set_device(device)  # Triton launches on the current one
        return device
    if not has_triton():
        raise SpecError(f"{_OWNER} needs Triton: pip install triton.")
    from topogen_torch._gpu._interpreted import take_cpu_as_card

    take_cpu_as_card()
    return device


def _facts(device: torch.device) -> dict[str, str]:
    """Return what a reader must know of the machine."""
    import torch
    import triton

    facts = {"date": str(date.today()), "device": str(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "processors": str(card.multi_processor_count),
            "L2": f"{card.L2_cache_size / 2**20:.0f} MiB",
            "memory": f"{card.total_memory / 2**30:.0f} GiB",
            "CUDA": str(torch.version.cuda),
        }
    else:
        facts["card"] = "none: Triton's interpreter, whose times mean nothing"
    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    return facts | versions | {"topogen": tg.__version__}


def _numbers(option: str, text: str, *, low: int) -> list[int]:
    return list(checks.integers(_read(option, text, int), option, _OWNER, low=low))


def _blocks(text: str) -> list[int]:
    from topogen_torch._gpu._choose import BLOCKS

    found = _numbers("--blocks", text, low=1)
    for block in found:
        if block not in BLOCKS:
            checks.refuse("--blocks", _OWNER, "from 16, 32, 64 and 128", block)
    return found


def _sparsities(text: str) -> list[float]:
    found = _read("--sparsities", text, float)
    return [checks.real(percent, "--sparsities", _OWNER, low=0, high=100) / 100 for percent in found]


def _read(option: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.replace(",", " ").split())
    except ValueError:
        checks.refuse(option, _OWNER, "numbers with commas between them", text)


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1)
    try:
        return checks.real(float(number), "--budget", _OWNER, low=0) * unit
    except ValueError:
        checks.refuse("--budget", _OWNER, "a time such as 90s or 8m", text)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
