"""Every kernel symbol and file in code font is one of Linux 5.17, or the release that has it stands right behind it.

`alloc_pages()` must be in the index of 5.17; `alloc_frozen_pages_noprof()` (6.18) in that of 6.18. A name that only the model has is a
name that mmsim or the page's own code defines.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.book.kernel_names import by_hand, index, index_for, mmsim_names, names_in_python, printed_by_kernels
from tests.book.pages import ROOT, code, markdown, pages, without_fenced_code

SPAN = re.compile(r"(?<!`)(?P<ticks>`+)(?!`)(?P<text>(?:(?!\n\s*\n).)+?)(?<!`)(?P=ticks)(?!`)(?P<after>[^`\n]{0,40})", re.S)
ROLE_BEFORE = re.compile(r"\{(\w[\w:+-]*)\}\Z")
NO_CODE = {"ref", "numref", "doc", "eq", "cite", "cite:p", "cite:t", "term", "abbr", "math", "download", "exercise"}
MARK = re.compile(r"^\s*\((?:since |in |new in |from |until |up to |before )?(?P<release>[56]\.\d+)\b")
KERNEL_FOLDERS = (
    "Documentation", "arch", "block", "drivers", "fs", "include", "init", "ipc", "kernel", "lib", "mm", "net", "security", "tools", "virt",
)
ROW = re.compile(r"\|\s*(?:since |in |until )?(?P<release>6\.\d+)\s*\|")      # a row of "Since 5.17" begins with its release
FILE = re.compile(rf"^(?:{'|'.join(KERNEL_FOLDERS)})/[\w./+-]*$")
TOKEN = re.compile(r"(?<![\w$])[A-Za-z_]\w*(?:\(\))?")


def spans(text: str) -> Iterator[tuple[str, str]]:
    """Code spans of Markdown prose, each with what follows it (the release of its table row, where that names one)."""
    text = without_fenced_code(text)
    for match in SPAN.finditer(text):
        role = ROLE_BEFORE.search(text, max(match.start() - 30, 0), match.start())
        if role and role.group(1) in NO_CODE:
            continue
        row = ROW.match(text, text.rfind("\n", 0, match.start()) + 1)
        yield match["text"], f" ({row['release']})" if row else match["after"]


def unknown(span: str, after: str, own: set[str]) -> list[str]:
    """What in a code span is no real name."""
    mark = MARK.match(after)
    release = index_for(mark["release"]) if mark else "5.17"
    symbols, files = index(release)
    if FILE.match(span.split(":")[0]):
        path = span.split(":")[0].rstrip("/")
        known = path in files or any(file.startswith(path + "/") for file in files) or path in by_hand()
        return [] if known else [f"{span} ({release})"]
    wrong = []
    for token in TOKEN.findall(span):
        name = token.removesuffix("()")
        if "_" not in name.strip("_") and not token.endswith("()"):
            continue                       # a plain word: no claim about the kernel
        if name in symbols or name in own or name in mmsim_names() or name in by_hand() or name in printed_by_kernels():
            continue
        wrong.append(f"{token} ({release}) in `{span}`")
    return wrong


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_kernel_name_in_code_font_is_real(page: Path) -> None:
    own = set().union(*(names_in_python(cell.text) for cell in code(page))) if page.suffix == ".ipynb" else set()
    wrong = [text for span, after in spans(markdown(page)) for text in unknown(span, after, own)]
    assert not wrong, "not in the symbol index: write the release behind it, or name what is real:\n" + "\n".join(wrong)


@pytest.mark.parametrize("text, wrong", [
    ("`alloc_pages()` calls `__alloc_pages()` in `mm/page_alloc.c`", 0),
    ("`struct free_area` has `nr_free`", 0),
    ("`alloc_pages_faster()`", 1),
    ("`mm/page_allocator.c`", 1),
    ("`zone_watermark_fine`", 1),
    ("`zonelist`", 0),
    ("`kmem:mm_page_alloc` and `/proc/sys/vm/min_free_kbytes`", 0),
    ("`high_min`", 1),
    ("`high_min` (6.7)", 0),
    ("`high_min` (since 6.7)", 0),
    ("| release | change |\n|---|---|\n| 6.7 | `high_min` and `high_max` |", 0),
    ("see {cite}`no_such_thing` and {ref}`no_such_label`", 0),
    ("```c\nno_such_thing();\n```", 0),
    ("```{literalinclude} ../mmsim/x.py\n:pyobject: no_such_thing\n```\n`another_such()`", 1),
    (":::{note}\n`no_such_thing`\n:::", 1),
])
def test_the_check_tells_real_names_from_invented_ones(text: str, wrong: int) -> None:
    found = [name for span, after in spans(text) for name in unknown(span, after, set())]
    assert len(found) == wrong, found
