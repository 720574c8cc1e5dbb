"""A directive that runs shell commands when the page is built and shows what they print.

```{shell}
:exit: 1
topogen verify net.npz
```

The commands of one page share an empty folder, so that a later one finds what an earlier one wrote. Any exit code but
the one named (0 by default) fails the build.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("shell", Shell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Shell(SphinxDirective):
    """Each line of the content is one command."""

    has_content = True
    option_spec: ClassVar[dict[str, object]] = {"exit": directives.nonnegative_int}

    def run(self) -> list[nodes.Node]:
        folder = self.env.temp_data.setdefault("shell", tempfile.TemporaryDirectory()).name
        plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "84", "PATH": _path()}
        transcript: list[str] = []
        for command in self.content:
            done = subprocess.run(
                command, shell=True, cwd=folder, env=os.environ | plain, capture_output=True, text=True, check=False
            )
            if done.returncode != self.options.get("exit", 0):
                raise self.error(f"{command!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            output = (done.stdout + done.stderr).strip("\n")
            transcript.append("\n".join([f"$ {command}", *(line.rstrip() for line in output.splitlines())]))
        block = nodes.literal_block("", "\n".join(transcript), language="console", classes=["shell"])
        return [block]


def _path() -> str:
    """The search path with this interpreter's commands first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
