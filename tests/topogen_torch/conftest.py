"""The tests share `command_line`; without PyTorch every module is a skip that is printed and counted, not an error."""

import gc
import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


class NeedsTorch(pytest.Module):
    def collect(self):
        pytest.skip("needs PyTorch: pip install 'topogen-nn[torch]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if importlib.util.find_spec("torch") is None:
        return NeedsTorch.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def _nothing_listens_afterwards():
    """As long as a controller records gradients, models run uncompiled: one left in a cycle would go on doing so."""
    yield
    tapes = sys.modules.get("topogen_torch.controllers._tape")
    if tapes is not None and tapes._on:
        gc.collect()
