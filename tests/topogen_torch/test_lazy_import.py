"""`import topogen_torch` costs nothing until a name is used, and says what to install where PyTorch is absent."""

import subprocess
import sys

import pytest

import topogen_torch as tt


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_torch_loads_with_the_first_name_and_not_before():
    code = (
        "import sys, topogen_torch as tt; print('torch' in sys.modules); tt.SparseLinear; print('torch' in sys.modules)"
    )
    assert run(code).split() == ["False", "True"]


def test_every_public_name_is_there():
    assert dir(tt) == sorted(tt.__all__)
    for name in tt.__all__:
        assert getattr(tt, name).__doc__, name
    assert tt.SparseLinear is tt.SparseLinear


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'topogen_torch' has no attribute 'SparseLiner'$"):
        tt.SparseLiner  # noqa: B018


def test_without_torch_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import topogen_torch as tt\n"
        "try: tt.SparseLinear\n"
        "except ModuleNotFoundError as error: print(error.name, error)"
    )
    wanted = "torch topogen_torch.SparseLinear needs PyTorch: pip install 'topogen-nn[torch]'."
    assert run(code) == wanted
