"""The page at `/`: files of this package, read once. Its content comes from the documented API.

It runs no script, loads nothing and is shown in no frame but its own server's: its policy says so
to the browser, which also refuses to make HTML of text (trusted types).
"""

from __future__ import annotations

import hashlib
import pathlib

from starlette.responses import Response

FOLDER = pathlib.Path(__file__).parent / 'static'
PREFIX, INDEX = '/static/', 'index.html'
MEDIA = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
}
POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
  'content-security-policy': POLICY,
  'cross-origin-opener-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-cache',  # a copy is used after the server said that it is still right
}


class Page:
  """The files by the path under which they are served."""

  def __init__(self) -> None:
    self._files: dict[str, tuple[bytes, str, str]] = {}  # content, media type, tag
    for file in sorted(FOLDER.iterdir()):
      content = file.read_bytes()
      path = '/' if file.name == INDEX else PREFIX + file.name
      tag = f'"{hashlib.blake2b(content, digest_size=8).hexdigest()}"'
      self._files[path] = content, MEDIA[file.suffix], tag

  @property
  def paths(self) -> list[str]:
    """The paths, of which none was made of a request."""
    return [*self._files]

  def response(self, path: str, known_tag: str | None) -> Response:
    """Return a file. known_tag: of the copy that the browser has."""
    content, media, tag = self._files[path]
    headers = HEADERS | {'etag': tag}
    if known_tag == tag:
      return Response(status_code=304, headers=headers)
    return Response(content, media_type=media, headers=headers)
