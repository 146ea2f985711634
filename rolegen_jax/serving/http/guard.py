"""Who is answered: whoever knows the token, if there is one, and no page of another site.

A browser lets any site's page send requests to a server of the same machine. Those that change
something say whose page they are from. One that reads could be let in by DNS rebinding: the site's
own name then stands for 127.0.0.1, and to the browser the server is that site. But the request says
the name.
"""

from __future__ import annotations

import hmac
import ipaddress
import urllib.parse
from collections.abc import Collection, Sequence

from starlette.requests import Request

from rolegen_jax.config import ConfigError
from rolegen_jax.serving.http.schema import Refused

ELSEWHERE = ('cross-site', 'same-site')  # pages that are not this server's


class Guard:
  """Checks requests before anything else reads them."""

  def __init__(self, token: str = '', names: Collection[str] | None = None):
    """token: '' = anybody may ask.

    names: of this server, beside those that only the loopback has; None = any.
    """
    self._token = token.encode()
    self._names = None if names is None else frozenset(name.lower() for name in names)

  @property
  def has_token(self) -> bool:
    """Whether requests need a token."""
    return bool(self._token)

  def check(self, request: Request, is_open: bool) -> None:
    """Raise Refused where a request must not be answered. is_open: whether its path needs no token.

    401: not the token. 403: a page of another site. 421: asked under a name that is not ours.
    """
    self._check_host(request)
    _check_origin(request)
    if self._token and not is_open:
      self._check_token(request)

  def _check_host(self, request: Request) -> None:
    if self._names is None:
      return
    try:
      name = urllib.parse.urlsplit(f'//{request.headers.get("host", "")}').hostname or ''
    except ValueError:  # no closing bracket
      name = ''
    if not (is_of_loopback(name) or name in self._names):
      right = ', '.join(['localhost', '127.0.0.1', '[::1]', *sorted(self._names)])
      raise Refused(
        421, 'host', f'must be one of {right}; --allowed_hosts of rolegen serve adds names'
      )

  def _check_token(self, request: Request) -> None:
    kind, _, token = request.headers.get('authorization', '').partition(' ')
    # Headers are latin-1: any byte has its character.
    given = token.strip().encode('latin-1', 'replace')
    if kind.lower() != 'bearer' or not hmac.compare_digest(given, self._token):
      raise Refused(401, 'authorization', 'must be `Bearer` and the token of this server')


def is_of_loopback(name: str) -> bool:
  """Return whether a name or address, without brackets, always stands for the same machine."""
  try:
    return name == 'localhost' or ipaddress.ip_address(name).is_loopback
  except ValueError:
    return False


def own_names(
  host: str, address: str, has_token: bool, allowed: Sequence[str]
) -> frozenset[str] | None:
  """Return under which names a server may be asked, as `Guard` takes them.

  host: the name or address that it was told to listen at. address: that one, resolved. allowed:
  --allowed_hosts. What reaches a server of other machines has names that it does not know, and a
  rebound page knows no token: there nothing is checked unless names are given. Raises ConfigError.
  """
  for name in allowed:
    if name != urllib.parse.quote(name, safe='') or ':' in name:
      right = 'names without scheme and port, e.g. shop.example.com'
      raise ConfigError(f'--allowed_hosts: {name!r} must be one of {right}')
  if not allowed and (has_token or not is_of_loopback(address)):
    return None
  return frozenset([*allowed, *([] if is_of_loopback(host) else [host])])


def _check_origin(request: Request) -> None:
  if request.method != 'POST':
    return
  right = "must not be another site's: use the page at / here"
  # Browsers say the second only over TLS or on the loopback.
  origin = request.headers.get('origin')
  if origin and urllib.parse.urlsplit(origin).netloc != request.headers.get('host'):
    raise Refused(403, 'origin', right)
  if request.headers.get('sec-fetch-site') in ELSEWHERE:
    raise Refused(403, 'sec-fetch-site', right)
