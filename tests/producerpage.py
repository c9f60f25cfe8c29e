"""The programs that docs/producers.md prints, by the name in their first line."""

from __future__ import annotations

import re

from test_docs import ROOT, Block, blocks

PAGE = (ROOT / "docs" / "producers.md").read_text(encoding="utf-8")
BLOCKS: list[Block] = blocks(PAGE)
PROGRAMS = {
    title[1]: block.text
    for block in BLOCKS
    if (title := re.match(r"(?:<\?php\n)?(?:#|//|/\*) ([Rr]emind\w*\.\w+)", block.text))
}
