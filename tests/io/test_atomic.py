"""Files appear whole or not at all: errors, Ctrl-C, kill -9 and a full disk leave what was there before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.sparse as sp

import topogen as tg
from topogen import io as tgio
from topogen.errors import GenerationError


@pytest.mark.parametrize("error", [GenerationError("no luck"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_failure_leaves_the_old_file_and_no_other(error, saved, net):
    def build(k: int) -> sp.csr_array:
        if k == 2:
            raise error
        return tg.as_pattern(np.eye(5))

    with pytest.raises(type(error)):
        tg.save(tg.Topology(tg.LazyLayers((5,) * 5, build)), saved)
    assert list(saved.parent.iterdir()) == [saved]
    assert tg.load(saved) == net


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_a_kill_leaves_the_old_file(saved, net):
    script = """
        import os, signal, sys
        import numpy as np, topogen as tg
        def build(k):
            if k == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return tg.as_pattern(np.eye(500))
        tg.save(tg.Topology(tg.LazyLayers((500,) * 5, build)), sys.argv[1])
    """
    assert run(script, saved).returncode == -signal.SIGKILL
    assert tg.load(saved) == net
    assert all(path.name.startswith(".topogen-") for path in saved.parent.iterdir() if path != saved)


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_full_disk_leaves_the_old_file_and_no_other(saved, net):
    script = """
        import resource, sys
        import numpy as np, topogen as tg
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            tg.save(tg.Topology([np.ones((200, 200))]), sys.argv[1])
        except OSError as error:
            print(error.strerror)
    """
    done = run(script, saved)
    assert (done.stdout, done.stderr) == ("File too large\n", "")
    assert list(saved.parent.iterdir()) == [saved]
    assert tg.load(saved) == net


def test_replacing_follows_a_link_and_keeps_the_umask(tmp_path):
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real.npz", tmp_path / "link.npz"
    real.write_bytes(b"old")
    link.symlink_to(real)
    old = os.umask(0o027)
    try:
        with tgio.replacing(link) as file:
            file.write(b"new")
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_replacing_names_the_file_that_was_asked_for(tmp_path):
    for path, error in [(tmp_path / "no" / "x", FileNotFoundError), (tmp_path, IsADirectoryError)]:
        with pytest.raises(error) as caught, tgio.replacing(path):
            pass
        assert caught.value.filename == str(path)
