"""Logs of reviews, films, videos and music."""

from __future__ import annotations

import polars as pl

from rolegen_jax.data import columns
from rolegen_jax.data.columns import LISTS, Field, coded, number, time_field
from rolegen_jax.data.formats.description import (
  PURCHASE,
  Format,
  Table,
  either,
  flag,
  id_field,
  labels,
  text_id,
)
from rolegen_jax.data.layouts import Delimited, JsonLines, Parquet

# Yambda's times are seconds since a moment that is not said; they count from here, 2024-01-01 UTC.
YAMBDA_START = 1_704_067_200
_LIKED = {'event': either((pl.col('rating') >= 4, 'purchase'), otherwise='view')}

AMAZON_REVIEWS2023 = Format(
  'Amazon Reviews 2023, a category as CATEGORY.jsonl.gz and meta_CATEGORY.jsonl.gz: '
  'https://amazon-reviews-2023.github.io',
  events=(
    Table(
      ('*.jsonl', '*.jsonl.gz'),
      JsonLines(),
      (
        text_id('user_id', 'user_id'),
        text_id('parent_asin', 'item_id'),
        time_field('timestamp', 'ms'),
      ),
      PURCHASE,
    ),
  ),
  items=(
    Table(
      ('meta_*.jsonl', 'meta_*.jsonl.gz'),
      JsonLines(),
      (
        text_id('parent_asin', 'item_id'),
        *labels(title='title', brand='store', features='features', description='description'),
        Field('categories', 'category_code', columns.path, 'a list of names', True, json=LISTS),
        *labels(listed='price'),
      ),
      {
        'text': columns.label(
          pl.concat_str('title', 'features', 'description', separator='\n', ignore_nulls=True)
        ),
        # Words such as 'from 12.99' stand there too: such a price is unknown.
        'price': columns.price(pl.col('listed')),
      },
    ),
  ),
)

_RATING = Field('rating', 'rating', number, 'a number')
_MOVIELENS_HEADER = ('userId', 'movieId', 'rating', 'timestamp')
_MOVIELENS_FIELDS = (
  id_field('userId', 'user_id'),
  id_field('movieId', 'item_id'),
  _RATING,
  time_field('timestamp', 's'),
)
_MOVIE = (
  id_field('movieId', 'item_id'),
  *labels(title='title', category_id='genres'),
)
_MOVIE_HEADER = ('movieId', 'title', 'genres')
MOVIELENS = Format(
  'MovieLens 100K, 1M, 10M, 20M, 25M and 32M, unpacked: https://grouplens.org/datasets/movielens/',
  events=(
    Table(('ratings.csv',), Delimited(), _MOVIELENS_FIELDS, _LIKED),
    Table(('ratings.dat',), Delimited('::', _MOVIELENS_HEADER), _MOVIELENS_FIELDS, _LIKED),
    Table(('u.data',), Delimited('\t', _MOVIELENS_HEADER), _MOVIELENS_FIELDS, _LIKED),
  ),
  items=(
    Table(('movies.csv',), Delimited(quoted=True), _MOVIE),
    Table(('movies.dat',), Delimited('::', _MOVIE_HEADER, encoding='latin-1'), _MOVIE),
    Table(
      ('u.item',),
      Delimited(
        '|',
        ('movieId', 'title', 'released', 'on video', 'URL', *(f'genre {k}' for k in range(19))),
        encoding='latin-1',
      ),
      _MOVIE[:2],  # genres are 19 flags here
    ),
  ),
  unread=(
    *('users.dat', 'tags.csv', 'tags.dat', 'links.csv', 'genome-*.csv', 'allbut.pl', 'mku.sh'),
    *('split_ratings.sh', 'u.genre', 'u.info', 'u.occupation', 'u.user', 'u?.base', 'u?.test'),
    *('ua.*', 'ub.*', 'checksums.txt'),
  ),
)

KUAIRAND = Format(
  'KuaiRand (log_standard_*.csv, log_random_*.csv, video_features_basic_*.csv): '
  'https://kuairand.com',
  events=(
    Table(
      ('log_*.csv',),
      Delimited(),
      (
        id_field('user_id', 'user_id'),
        id_field('video_id', 'item_id'),
        time_field('time_ms', 'ms'),
        *map(flag, ('is_click', 'is_like', 'long_view')),
      ),
      {
        'event': either(
          (pl.col('long_view') == '1', 'purchase'),
          (pl.col('is_like') == '1', 'fav'),
          (pl.col('is_click') == '1', 'view'),
          otherwise='impression',
        )
      },
    ),
  ),
  items=(
    Table(
      ('video_features_basic_*.csv',),
      Delimited(quoted=True),
      (id_field('video_id', 'item_id'), *labels(category_id='tag', brand='author_id')),
    ),
  ),
  unread=('user_features_*.csv', 'video_features_statistic_*.csv', 'load_data_*.py'),
)

YAMBDA = Format(
  'Yambda, a folder flat/SIZE of its multi_event.parquet: '
  'https://huggingface.co/datasets/yandex/yambda',
  events=(
    Table(
      ('multi_event.parquet',),
      Parquet(),
      (
        id_field('uid', 'user_id'),
        id_field('item_id', 'item_id'),
        Field(
          'timestamp', 'timestamp', columns.since(YAMBDA_START), 'seconds from 0 to 400,000,000'
        ),
        Field(
          'event_type',
          'kind',
          coded(
            {kind: kind for kind in ('listen', 'like', 'dislike', 'unlike', 'undislike')},
            pl.String(),
          ),
          'listen, like, dislike, unlike or undislike',
        ),
        Field('played_ratio_pct', 'played', number, 'a number', optional=True),
      ),
      {
        'event': either(
          (pl.col('played').fill_null(0) >= 50, 'purchase'),
          (pl.col('kind') == 'like', 'fav'),
          (pl.col('kind').is_in(('dislike', 'unlike')), 'remove'),
          otherwise='view',
        )
      },
    ),
  ),
  unread=('listens.parquet', '*likes.parquet', 'embeddings.parquet', '*_item_mapping.parquet'),
)
