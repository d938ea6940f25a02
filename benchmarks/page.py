"""The pages in Chromium: weight, time until figures work, Python in the page (cold, warm, a call), and Pyodide against CPython."""

from __future__ import annotations

import gzip
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.measure import Row, median
from tests.browser.conftest import FLAGS, chromium
from tools.serve import make_server

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"

# The same mechanisms in both. Returns nanoseconds of the fastest of three, by name.
MECHANISM = """
def measure():
    import time
    from mmsim.paging.mmu import Mmu
    from mmsim.process.populate import Access
    from mmsim.reference import ref256
    best = {}
    begin = 0

    def lap(name):
        nonlocal begin
        now = time.perf_counter_ns()
        best[name] = min(best.get(name, now - begin), now - begin)
        begin = time.perf_counter_ns()

    for _ in range(3):
        begin = time.perf_counter_ns()
        machine = ref256()
        lap("boot")
        for _ in range(10):
            pages = [machine.alloc_pages() for _ in range(1000)]
            for pfn in pages:
                machine.free_pages(pfn)
        lap("pages")
        slub = machine.slub
        begin = time.perf_counter_ns()
        for obj in [slub.kmalloc(64) for _ in range(5000)]:
            slub.kfree(obj)
        lap("slab")
        process = machine.spawn("a.out")
        at = process.mmap(0, 16384 << 12, 3, 0x22)
        begin = time.perf_counter_ns()
        for page in range(4096):
            process.touch(at + (page << 12), Access.WRITE)
        lap("faults")
        process.touch_range(at + (4096 << 12), 12288, write=True)
        lap("bulk")
        child = machine.processes[process.fork()]
        lap("fork")
        child.exit()
        cpu = Mmu(machine.contents)
        cpu.write_cr3(process.page_tables.pgd << 12)
        addrs = [at + (number * 7919 % 48 << 12) for number in range(100000)]
        cpu.run(addrs)
        begin = time.perf_counter_ns()
        cpu.run(addrs)
        lap("accesses")
        cpu.use_tlb = False
        begin = time.perf_counter_ns()
        for page in range(2000):
            cpu.translate(at + (page << 12))
        lap("walks")
        process.exit()
    return best
"""
#: What of these stands in the table, and the factor that is still bearable.
COMPARED = (("boot", "boot of ref256"), ("pages", "10 000 `alloc_pages` and `free_pages`"),
            ("slab", "5000 `kmalloc` and `kfree`"), ("faults", "4096 minor faults, one by one"),
            ("bulk", "12 288 minor faults in bulk"), ("fork", "fork of 64 MiB"),
            ("accesses", "100 000 accesses that hit the TLB, in bulk"), ("walks", "2000 walks of four levels"))
IN_PAGE = """async ([source]) => {
  const base = new URL("/_static/mm/", location.href);
  const manifest = await (await fetch(new URL("mm-python.json", base))).json();
  const { loadPyodide } = await import(new URL("pyodide/pyodide.mjs", base));
  const python = await loadPyodide({ indexURL: new URL("pyodide/", base).href });
  python.unpackArchive(await (await fetch(new URL(manifest.wheel, base))).arrayBuffer(), "wheel");
  python.runPython(source);
  return JSON.parse(python.runPython("import json; json.dumps(measure())"));
}"""


def entries() -> list[str]:
    from tests.book.pages import toc_entries

    return toc_entries()


def run() -> list[Row]:
    path = chromium()
    if path is None:
        print("no Chromium: the page benchmarks are left out")
        return []
    server = make_server(HTML, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    rows: list[Row] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        for entry in entries():
            weight, ready = 0, []
            for attempt in range(3):
                context = browser.new_context()
                page = context.new_page()
                loaded: set[str] = set()
                page.on("request", lambda request, loaded=loaded: loaded.add(request.url))
                begin = time.perf_counter()
                page.goto(f"{url}/{entry}.html", wait_until="commit")
                page.wait_for_function("document.readyState !== 'loading' && [...document.querySelectorAll('mm-figure')]"
                                       ".every((f) => f.classList.contains('mm-ready'))")
                ready.append(time.perf_counter() - begin)
                if attempt == 0:
                    page.wait_for_load_state("networkidle")
                    files = {HTML / one.removeprefix(url).lstrip("/").split("?")[0].split("#")[0] for one in loaded if one.startswith(url)}
                    weight = sum(len(gzip.compress(file.read_bytes(), 6)) for file in files if file.is_file())
                context.close()
            rows.append(Row("page", f"{entry}: gzip with all it loads", weight / 1000, 1500, "the target", "kB", "≤ 1"))
            rows.append(Row("page", f"{entry}: until its figures work", median(ready), 1.0, "the target", "s", "≤ 1"))

        cold, warm, calls = [], [], []
        for _ in range(3):
            context = browser.new_context()
            for starts in (cold, warm):
                page = context.new_page()
                page.goto(f"{url}/book/appendix/figures.html")
                page.wait_for_selector("mm-figure.mm-ready")
                starts.append(page.evaluate("""async () => { const begin = performance.now();
                    const { compute } = await import('/_static/mm/mm-python.js'); window.compute = compute;
                    await compute('mmsim.figures.example:splitting', {order: '0'}); return performance.now() - begin; }"""))
                calls.append(page.evaluate("""async () => { const spent = [];
                    for (let i = 0; i < 30; i++) { const begin = performance.now();
                      await window.compute('mmsim.figures.example:splitting', {order: String(i % 5), $layouts: ['wide']});
                      spent.push(performance.now() - begin); }
                    return spent.sort((a, b) => a - b)[15]; }"""))
                page.close()
            context.close()
        rows.append(Row("Python in the page", "cold start to the first answer", median(cold) / 1000, 6.0, "the target", "s", "≤ 1"))
        rows.append(Row("Python in the page", "warm start (files in the cache)", median(warm) / 1000, median(cold) / 1000, "cold", "s"))
        rows.append(Row("Python in the page", "a changed parameter, worker and back", median(calls), 50, "the target", "ms", "≤ 1"))

        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/book/appendix/figures.html")
        there = page.evaluate(IN_PAGE, [MECHANISM])
        space: dict[str, object] = {}
        exec(MECHANISM, space)
        here = space["measure"]()  # type: ignore[operator]
        for name, what in COMPARED:
            rows.append(Row("Pyodide", what, there[name] / 1e6, here[name] / 1e6, "CPython", "ms", "≤ 2.5"))
        browser.close()
    server.shutdown()
    return rows
