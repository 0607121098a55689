"""The files of the server's page, and the headers under which browsers may use them."""

from pathlib import Path

from mova_engine.web.page_headers import page_headers

_FOLDER = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_files() -> list[tuple[str, bytes, dict[str, str]]]:
    """(address, content, headers) of each file: the page itself at /, the others under /page/."""
    headers = page_headers(img_src="'self' blob: data:", media_src="'self' blob:")
    found = []
    for path in sorted(_FOLDER.iterdir()) if _FOLDER.is_dir() else ():
        if path.suffix in _KINDS:
            address = "/" if path.name == "index.html" else f"/page/{path.name}"
            found.append((address, path.read_bytes(), {**headers, "Content-Type": _KINDS[path.suffix]}))
    return found
