"""What runs on a card imports torch, triton, numpy and scipy alone, seen from processes that have nothing else."""

import subprocess
import sys

ABSENT = (
    "numba", "llvmlite", "lightning_fabric", "sklearn", "typer", "rich", "pooch", "safetensors", "matplotlib",
    "networkx", "joblib", "hypothesis",
)  # fmt: skip
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(code):
    return subprocess.run([sys.executable, "-c", BLOCKER + code], capture_output=True, text=True, check=False)


def test_layers_can_be_made_without_numba():
    process = run(
        "import numpy as np, torch, topogen_torch as tt\n"
        "for device in ('cpu', 'meta'):\n"
        "    tt.BlockSparseLinear(np.eye(4), 16, device=device)\n"
        "    tt.SparseLinear(np.eye(4), device=device)\n"
        "    tt.SparseLinear(1 - np.eye(300), device=device)\n"  # outputs that share their connections
        "    tt.SparseConv2d(np.eye(4), 3, device=device)\n"
        "    tt.SparseMultiheadAttention(np.eye(4), 2, device=device)\n"
        "    tt.SparseLSTM([(np.eye(4), np.eye(4))], device=device)\n"
        "tt.report, tt.sparse_mlp, tt.RigL\n"
        "import importlib.util, topogen_torch._gpu._tuning\n"
        "if importlib.util.find_spec('triton'):\n"
        "    import topogen_torch._gpu._stages\n"
    )
    assert process.returncode == 0, process.stderr


def test_the_benchmark_says_what_it_can_do():
    process = run(
        "import runpy\nsys.argv = ['bench', '--help']\nrunpy.run_module('topogen_torch.bench', run_name='__main__')"
    )
    assert process.returncode == 0, process.stderr
    assert "--budget" in process.stdout


def test_the_cpu_says_what_it_lacks():
    process = run(
        "import numpy as np, torch, topogen_torch as tt\n"
        "for layer in tt.SparseLinear(np.eye(4)), tt.BlockSparseLinear(np.eye(2), 2):\n"
        "    try: layer(torch.ones(2, 4))\n"
        "    except ModuleNotFoundError as error: print(error)"
    )
    sentence = "A sparse layer on the CPU needs numba: pip install numba, or move the layer to a card."
    assert process.stdout.splitlines() == [sentence, sentence], process.stderr


def test_a_kernel_by_name_says_what_it_lacks():
    process = run("from topogen import kernels\nkernels.Window((3, 3))\nkernels.multiply")
    assert process.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: topogen.kernels.multiply needs numba, as everything that runs on the CPU: "
        "pip install numba."
    )


def test_the_blocker_bites():
    process = run(
        f"for name in {ABSENT}:\n    try: __import__(name)\n    except ModuleNotFoundError as error: print(error)"
    )
    assert process.stdout.splitlines() == [f"No module named {name!r}" for name in ABSENT]
