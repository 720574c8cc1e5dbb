"""Directives that show a topology: its claims beside what was measured, and its picture, both made at build time.

```{claims} RadixNet(systems=[[2, 2, 2]])
```

```{picture} RadixNet(systems=[[2, 2, 2]])
:kind: layered
:alt: A layered graph ...
```

Both generate the spec (random families with seed 0). A claim that does not hold fails the build.
"""

import hashlib
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import topogen as tg
from topogen._claims import shown

_SEED = 0


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("claims", ClaimsTable)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class ClaimsTable(SphinxDirective):
    """A table of ``verify(generate(spec))``, with the source of every claim."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        report = tg.verify(tg.generate(tg.spec_from_text(self.arguments[0]), rng=_SEED))
        if report.holds is not True:
            raise self.error(f"{self.arguments[0]} does not keep its claims:\n{report}")
        body = [
            (
                row.name,
                row.promise,
                shown(row.measured),
                "yes" if row.holds else "",
                row.source,
            )
            for row in report
        ]
        return [_table(("claim", "promised", "measured", "held", "source"), body)]


class Picture(SphinxDirective):
    """``draw(generate(spec), kind=...)`` as a figure."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, object]] = {
        "kind": lambda text: directives.choice(text, ("layered", "spy")),
        "alt": directives.unchanged_required,
        "width": directives.unchanged,
    }
    has_content = True

    def run(self) -> list[nodes.Node]:
        text, kind = self.arguments[0], self.options.get("kind", "spy")
        folder = Path(self.env.srcdir) / "families" / "_generated"
        folder.mkdir(exist_ok=True)
        path = folder / f"{hashlib.sha256(f'{kind} {text}'.encode()).hexdigest()[:16]}.png"
        tg.draw(tg.generate(tg.spec_from_text(text), rng=_SEED), path, kind=kind)
        image = nodes.image(uri=f"/families/_generated/{path.name}", alt=self.options["alt"], classes=["topology"])
        if "width" in self.options:
            image["width"] = self.options["width"]
        figure = nodes.figure("", image)
        if self.content:
            caption = nodes.caption()
            parsed, _ = self.state.inline_text("\n".join(self.content), self.lineno)
            caption.extend(parsed)
            figure.append(caption)
        return [figure]


def _table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> nodes.table:
    group = nodes.tgroup(cols=len(header))
    group.extend(nodes.colspec(colwidth=1) for _ in header)
    group.append(nodes.thead("", _row(header)))
    group.append(nodes.tbody("", *map(_row, body)))
    return nodes.table("", group, classes=["claims"])


def _row(cells: tuple[str, ...]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))
