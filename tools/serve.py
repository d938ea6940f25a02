"""Serve a folder on this machine only: `python tools/serve.py [FOLDER] [PORT]`."""

from __future__ import annotations

import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Handler(SimpleHTTPRequestHandler):
    """Static files with the content types that modules and WebAssembly need, whatever the system's MIME table says."""

    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
        ".json": "application/json", ".svg": "image/svg+xml", ".whl": "application/zip",
    }

    def end_headers(self) -> None:
        # A rebuilt book must show at once; unchanged files are still answered with 304.
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address is all the reader needs."""


def make_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of `folder` on 127.0.0.1; port 0 takes a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))


def main(folder: str = "_build/html", port: str = "8000") -> str | None:
    """Serve until Ctrl-C; the message to stop with, or None."""
    root = (ROOT / folder).resolve()
    if not (root / "index.html").exists():
        return f"{folder} holds no index.html: run `make site` first"
    try:
        server = make_server(root, int(port))
    except OSError as error:
        return f"port {port} cannot be used ({error.strerror}): make book PORT=8001"
    print(f"the book is at http://127.0.0.1:{server.server_port}/  (Ctrl-C stops)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
