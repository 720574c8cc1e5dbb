"""What Triton makes of the kernels for an A100 and an H200, on a machine without either: launched up to the card.

A driver that names the card and launches nothing stands in for CUDA's, so that the launch functions choose tiles and
specialise on their operands as they would there; ptxas, which comes with Triton, gives the machine code.
"""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import topogen as tg
from topogen.errors import SpecError
from topogen_torch._gpu import _launch
from topogen_torch._gpu._config import Config, default_config
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._layout import stored_index, transposed_index

triton = pytest.importorskip("triton", reason="Triton has no package for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from topogen_torch._gpu import _circulant, _forward, _input_gradient, _value_gradient  # noqa: E402

SHARED_BYTES = {80: 166_912, 90: 232_448}  # that a program of an A100, of an H200, may take
PASSES = {
    "forward": _forward.block_forward,
    "input_gradient": _input_gradient.block_input_gradient,
    "value_gradient": _value_gradient.block_value_gradient,
    "circulant_forward": _circulant.circulant_forward,
    "circulant_input_gradient": _circulant.circulant_input_gradient,
    "circulant_value_gradient": _circulant.circulant_value_gradient,
}
SYSTEMS = {16: [[16, 16]], 32: [[16, 8]], 64: [[8, 8]], 128: [[8, 4]]}  # of 4096 neurons
TOKENS = 8192


class Code(NamedTuple):
    """One kernel as it would be loaded."""

    kernel: str
    ptx: str
    shared_bytes: int
    registers: int
    spilled_bytes: int

    def count(self, pattern):
        return len(re.findall(pattern, self.ptx))


class Card:
    """A driver of a card that is not there."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


def usage(binary, folder):
    """Registers and spilled bytes of a thread, as NVIDIA's cuobjdump reads them."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    return found["REG"], found["STACK"] + found["LOCAL"]


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Return a function that runs a pass for a card and gives what was compiled for it."""
    codes = []
    original = JITFunction.run

    def run(self, *arguments, grid, warmup, **options):
        found = original(self, *arguments, grid=grid, warmup=True, **options)
        used = usage(found.asm["cubin"], tmp_path)
        codes.append(Code(self.__name__, found.asm["ptx"], found.metadata.shared, *used))
        return found

    def compile_pass(capability, function, *arguments, **options):
        monkeypatch.setattr(driver, "_active", Card(capability))
        codes.clear()
        function(*arguments, **options)
        return list(codes)

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(_launch, "is_interpreted", lambda: True)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    return compile_pass


def index_of(pattern, block):
    buffers = stored_index(pattern, "test") | transposed_index(pattern)
    names = ("indptr", "indices", "indptr_t", "indices_t", "permutation")
    return BlockIndex.from_buffers(*(buffers[name] for name in names), block=block)


def operands_of(kind, block, dtype):
    """A layer of 4096 neurons, a tenth of whose blocks are stored, or of a RadiX-Net."""
    if kind.startswith("circulant"):
        pattern = tg.generate(tg.RadixNet(systems=SYSTEMS[block])).layers[0]
    else:
        nodes = 4096 // block
        pattern = tg.as_pattern(sp.random_array((nodes, nodes), density=0.1, rng=np.random.default_rng(0)))
    index = index_of(pattern, block)
    x = torch.empty(TOKENS, 4096, dtype=dtype)
    values = torch.empty(index.blocks, block, block, dtype=dtype)
    if kind.endswith("value_gradient"):
        return x, x, index
    return (
        (x, values, index, torch.empty(4096, dtype=dtype), "gelu") if kind.endswith("forward") else (x, values, index)
    )


def assert_good(code, capability, kind, block, arithmetic):
    assert code.spilled_bytes == 0, code.registers
    assert code.shared_bytes <= SHARED_BYTES[capability]
    if code.kernel == "sum_of_parts":
        return
    products = {80: r"mma\.sync\.", 90: r"wgmma\.mma_async\."}
    if arithmetic == "ieee":
        assert not any(code.count(pattern) for pattern in products.values())
        assert code.count(r"fma\.rn\.f32")
        return
    numbers = {"tf32": r"\.f32\.tf32\.tf32", "bfloat16": r"\.f32\.bf16\.bf16", "float16": r"\.f32\.f16\.f16"}
    assert code.count(products[capability] + r"[\w.]*" + numbers[arithmetic])
    if arithmetic != "tf32":
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x[0-9a-f]+)", code.ptx)
        narrow = [copy for copy in copies if int(copy, 16) < 16]
        # The index, ahead of what it names: Triton 3.6 copies it once for each entry that a thread holds.
        assert len(narrow) <= (len(copies) // 2 if kind in ("forward", "input_gradient") else 0)


QUICK = [
    *((90, kind, block, "bfloat16") for kind in list(PASSES)[:3] for block in (16, 128)),
    *((90, kind, 16, "bfloat16") for kind in list(PASSES)[3:]),
    (80, "forward", 32, "float16"),
    (80, "value_gradient", 128, "bfloat16"),
    (90, "input_gradient", 64, "tf32"),
    (90, "circulant_input_gradient", 32, "ieee"),
]
THOROUGH = [
    (capability, kind, block, arithmetic)
    for capability in (80, 90)
    for kind in PASSES
    for block in (16, 32, 64, 128)
    for arithmetic in ("bfloat16", "float16", "tf32", "ieee")
]


@pytest.mark.parametrize(
    ("capability", "kind", "block", "arithmetic"),
    QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in THOROUGH if case not in QUICK],
)
def test_tensor_cores_and_no_spills(compiled, capability, kind, block, arithmetic):
    dtype = getattr(torch, arithmetic, torch.float32)
    precision = "ieee" if arithmetic == "ieee" else "tf32"
    codes = compiled(capability, PASSES[kind], *operands_of(kind, block, dtype), precision=precision)
    assert codes
    for code in codes:
        assert_good(code, capability, kind, block, arithmetic)


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("nodes", [1, 3])
def test_sizes_of_one_compile_too(compiled, kind, nodes):
    """Triton makes constants of arguments that are 1, which the interpreter does not."""
    index = index_of(tg.as_pattern(sp.eye_array(nodes)), 16)
    x, values = torch.empty(1, 16 * nodes, dtype=torch.float16), torch.empty(nodes, 16, 16, dtype=torch.float16)
    operands = (x, x, index) if kind.endswith("value_gradient") else (x, values, index)
    for code in compiled(90, PASSES[kind], *operands):
        assert code.spilled_bytes == 0
    split = compiled(80, PASSES[kind], *operands, config=Config(tokens=16, depth=16, split_k=2))
    assert len(split) == 1 + kind.endswith("value_gradient")


def test_a_spill_is_seen(compiled):
    config = Config(tokens=256, depth=64, warps=8, stages=6)
    (code,) = compiled(90, _forward.block_forward, *operands_of("forward", 128, torch.bfloat16), config=config)
    assert code.spilled_bytes > 0
    with pytest.raises(AssertionError):
        assert_good(code, 90, "forward", 128, "bfloat16")


def test_a_product_without_tensor_cores_is_seen(compiled):
    operands = operands_of("forward", 16, torch.float32)
    (code,) = compiled(90, _forward.block_forward, *operands, precision="ieee")
    with pytest.raises(AssertionError):
        assert_good(code, 90, "forward", 16, "tf32")


@pytest.mark.parametrize("kind", ["forward", "value_gradient", "circulant_forward"])
def test_defaults_fit_a_small_card(compiled, kind):
    small = 101_376  # of compute capability 8.6 and 8.9
    x, *_, index = (*operands_of(kind, 64, torch.float16)[:1], operands_of(kind, 64, torch.float16)[2])
    config = default_config(
        kind, block=64, dtype=x.dtype, n_in=4096, n_out=4096, density=index.density, tokens=TOKENS, shared_bytes=small
    )
    for code in compiled(80, PASSES[kind], *operands_of(kind, 64, torch.float16), config=config):
        assert code.shared_bytes <= small


@pytest.mark.parametrize("change", [{"tokens": 24}, {"depth": 8}, {"blocks": 3}, {"warps": 3}])
def test_what_is_refused_does_not_compile(compiled, monkeypatch, change):
    kind = "circulant_forward" if "blocks" in change else "forward"
    operands, config = operands_of(kind, 16, torch.float16), Config(**({"tokens": 16, "depth": 16} | change))
    with pytest.raises(SpecError, match=rf"^The 'config\.{next(iter(change))}' parameter of "):
        compiled(90, PASSES[kind], *operands, config=config)
    monkeypatch.setattr(_launch, "checked_config", lambda config, owner, block: config)
    with pytest.raises((CompilationError, AssertionError, ValueError)):
        compiled(90, PASSES[kind], *operands, config=config)
