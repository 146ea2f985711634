"""The paths of the server, and the document that describes them."""

from __future__ import annotations

from typing import Any

import msgspec

from rolegen_jax.serving.http import views
from rolegen_jax.serving.http.schema import (
  Answer,
  Appended,
  CatalogueRequest,
  Changed,
  EventsRequest,
  Problem,
  RecommendRequest,
)

_READ = (400, 401, 403, 408, 413, 422, 500)

# (method, path, summary, request, answer, statuses that answer with a Problem)
ROUTES: tuple[tuple[str, str, str, Any, Any, tuple[int, ...]], ...] = (
  (
    'post',
    '/v1/recommend',
    'Ranked items for a user',
    RecommendRequest,
    Answer,
    (400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504),
  ),
  (
    'post',
    '/v1/events',
    'Append to a history; the next answer knows it',
    EventsRequest,
    Appended,
    (400, 401, 403, 408, 413, 422, 500, 503, 507),
  ),
  (
    'post',
    '/v1/catalogue',
    'Add, remove and tag items, or return to an earlier version',
    CatalogueRequest,
    Changed,
    (400, 401, 403, 408, 409, 413, 422, 500, 503),
  ),
  ('get', '/v1/catalogue', 'The version of the catalogue', None, Changed, (401,)),
  (
    'post',
    '/v1/users',
    'Users by a part of their id',
    views.UsersRequest,
    views.Found,
    _READ,
  ),
  (
    'post',
    '/v1/history',
    'The latest events of a user',
    views.HistoryRequest,
    views.Events,
    (*_READ, 404),
  ),
  ('post', '/v1/items', 'Items with their values', views.ItemsRequest, views.ItemRows, _READ),
  ('get', '/v1/columns', 'What filters can be on', None, views.ColumnRows, (401, 500, 503)),
  ('get', '/v1/run', 'What is served', None, views.RunFacts, (401,)),
  ('get', '/v1/ab_test', 'The A/B test of a simulated run', None, views.AbTest, (401, 404)),
  ('get', '/', 'The page', None, None, ()),
  ('get', '/healthz', 'Whether the process is alive', None, None, ()),
  ('get', '/readyz', 'Whether to send requests here', None, None, (503,)),
  ('get', '/metrics', 'Prometheus text', None, None, (401,)),
  ('get', '/openapi.json', 'This document', None, None, (401,)),
)


def openapi(version: str, with_token: bool) -> dict[str, Any]:
  """Return the OpenAPI document. with_token: whether requests need a bearer token."""
  kinds = [*{kind: None for _, _, _, *both, _ in ROUTES for kind in both if kind}, Problem]
  template = '#/components/schemas/{name}'
  refs, schemas = msgspec.json.schema_components(kinds, ref_template=template)
  ref_of = dict(zip(kinds, refs))

  def content(kind: Any) -> dict[str, Any]:
    return {'application/json': {'schema': ref_of[kind]}}

  paths: dict[str, Any] = {}
  for method, path, summary, request, answer, problems in ROUTES:
    done: dict[str, Any] = {'description': 'done'}
    if answer:
      done['content'] = content(answer)
    responses = {'200': done}
    for status in (*problems, 421):
      responses[str(status)] = {'description': 'refused', 'content': content(Problem)}
    operation: dict[str, Any] = {'summary': summary, 'responses': responses}
    if request:
      operation['requestBody'] = {'required': True, 'content': content(request)}
    paths.setdefault(path, {})[method] = operation
  components: dict[str, Any] = {'schemas': schemas}
  document: dict[str, Any] = {
    'openapi': '3.1.0',
    'info': {'title': 'RoleGen-JAX', 'version': version},
    'paths': paths,
    'components': components,
  }
  if with_token:
    components['securitySchemes'] = {'token': {'type': 'http', 'scheme': 'bearer'}}
    document['security'] = [{'token': []}]
  return document
