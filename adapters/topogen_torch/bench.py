"""``python -m topogen_torch.bench``: what the block-sparse layers do on a graphics card, in one command.

It measures the card's own ceilings, checks every kernel against float64, measures layers of many sizes beside dense
ones and beside torch's own block-sparse product, and then whole training steps. torch, triton, numpy and scipy suffice.
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

if TYPE_CHECKING:
    import torch

    from topogen_torch._gpu._results import Results

__all__ = ["main"]

_OWNER = "topogen_torch.bench"
_ON_CARD = {"sizes": "4096,2048,8192,1024", "blocks": "128,64,32,16", "sparsities": "50,75,90,95,99", "tokens": 8192}
_AHEAD = 0.3  # of the budget may go into compiling several kernels at once
_TRAINING = 0.15  # of the budget is left for training steps
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
        0; 1 if a kernel errs by more than it may; 2 if there is nothing to run on, or an option is refused.

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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to this file too")
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
    }
    device = _device(options.device)
    from topogen_torch._gpu._results import Results

    results = Results(facts=_facts(device), settings=settings)
    print(", ".join(f"{name} {value}" for name, value in results.facts.items()), flush=True)
    try:
        _measure(results, device)
    finally:  # what Ctrl-C leaves holds
        text = results.to_markdown()
        print(f"\n{text}", flush=True)
        if options.markdown is not None:
            options.markdown.write_text(text)
        if options.json is not None:
            options.json.write_text(dumps(results.to_dict(), indent=1) + "\n")
    return 0 if all(each.holds for each in results.accuracies) else 1


def _measure(results: Results, device: torch.device) -> None:
    """Fill `results`, and print each part as it comes."""
    import torch

    from topogen_torch._gpu._accuracy import BOUNDS, TOKENS, accuracies
    from topogen_torch._gpu._cases import cases
    from topogen_torch._gpu._ceilings import measure_ceilings
    from topogen_torch._gpu._results import row_line
    from topogen_torch._gpu._timed import dense_seconds, row_of
    from topogen_torch._gpu._training_steps import training_steps
    from topogen_torch._gpu._warm import compile_ahead, jobs_of

    settings, on_card = results.settings, device.type == "cuda"
    tokens, dtype = settings["tokens"], getattr(torch, settings["dtype"])
    end = perf_counter() + settings["budget"]
    end_of_table = end - _TRAINING * settings["budget"]
    results.ceilings = measure_ceilings(device, **({} if on_card else {"size": 64, "copied": 1 << 16}))
    _say("ceilings measured")
    chosen = list(cases(settings["sizes"], settings["blocks"], settings["sparsities"]))
    checked = TOKENS if on_card else 20
    jobs = jobs_of(settings["blocks"], list(BOUNDS), chosen, settings["dtype"], tokens, checked)
    ahead = compile_ahead(jobs if on_card else jobs[:1], device, settings["budget"] * _AHEAD)
    _say(f"kernels of {ahead} layers and checks compiled ahead")
    for found in accuracies(settings["blocks"], device, tokens=checked):
        results.accuracies.append(found)
        if not found.holds:
            _say(f"WRONG: {found}")
    _say(f"{len(results.accuracies)} kernels checked against float64")
    dense: dict[int, Any] = {}
    for case in chosen:
        for kernel in case.kernels:
            if perf_counter() > end_of_table:
                results.missing.append((case, kernel))
                continue
            try:
                if case.n not in dense:
                    dense[case.n] = dense_seconds(case.n, tokens, dtype, device)
                results.rows.append(row_of(case, kernel, tokens, dtype, device, dense[case.n]))
                _say(row_line(results.rows[-1], results.ceilings, results.ceiling))
            except Exception as error:  # of whatever kind: the other cases are measured
                results.missing.append((case, kernel))
                _say(f"{case}, {kernel}: {type(error).__name__}: {error}")
    block = min(settings["blocks"], key=lambda size: abs(size - 64))
    width = min(settings["sizes"], key=lambda size: abs(size - 4096))
    if perf_counter() < end:
        for steps in training_steps(
            device,
            block=block,
            sparsity=0.9 if on_card else 0.95,  # of 4 x 4 blocks one is left
            width=width,
            tokens=tokens,
            depth=4 if on_card else 1,
        ):
            results.steps.append(steps)
            _say(str(steps))
    results.complete = not results.missing and bool(results.steps)


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
