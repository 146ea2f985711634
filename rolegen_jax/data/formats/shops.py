"""Logs of shops."""

from __future__ import annotations

import polars as pl

from rolegen_jax.data import columns
from rolegen_jax.data.columns import Field, integer, time_field
from rolegen_jax.data.formats.description import (
  Format,
  Table,
  Window,
  event,
  id_field,
  labels,
  price,
  text_id,
)
from rolegen_jax.data.layouts import Delimited, JsonLines, Parquet

# Seconds UTC of 2017-11-25 00:00 and 2017-12-04 00:00 (exclusive) in UTC+8.
TAOBAO_WINDOW = (1511539200, 1512316800)
# The file has no year; the contest opened in March 2014 with a log of the April to August before.
ALIBABA_YEAR = 2013
TMALL_YEAR = 2014  # of the six months to 11 November; the file has no year either

CSV = ('*.csv', '*.csv.gz', '*.csv.zst')

ALIBABA2014 = Format(
  'Alibaba 2014 big-data contest, season 1, Tmall brand recommendation (t_alibaba_data.csv): '
  'https://tianchi.aliyun.com, copy at https://github.com/yezhang/BuyingBehaviourPredict',
  events=(
    Table(
      CSV,
      Delimited(),
      (
        id_field('user_id', 'user_id'),
        id_field('brand_id', 'item_id'),
        event(
          'type',
          '0 (click), 1 (purchase), 2 (favorite) or 3 (cart)',
          **{'0': 'view', '1': 'purchase', '2': 'fav', '3': 'cart'},
        ),
        Field(
          'visit_datetime',
          'timestamp',
          columns.day(ALIBABA_YEAR, '%m-%d'),
          f'a date M-D of {ALIBABA_YEAR}',
        ),
      ),
    ),
  ),
)

TAOBAO_USERBEHAVIOR = Format(
  'Taobao UserBehavior (UserBehavior.csv): https://tianchi.aliyun.com/dataset/649',
  events=(
    Table(
      CSV,
      Delimited(header=('user ID', 'item ID', 'category ID', 'behavior type', 'timestamp')),
      (
        id_field('user ID', 'user_id'),
        id_field('item ID', 'item_id'),
        id_field('category ID', 'category_id'),
        event('behavior type', pv='view', fav='fav', cart='cart', buy='purchase'),
        Field('timestamp', 'timestamp', integer, 'whole seconds UTC'),
      ),
    ),
  ),
  attributes=('category_id',),
  window=Window(
    'dropped_outside_window',
    pl.col('timestamp').is_between(*TAOBAO_WINDOW, closed='left'),
    f'in seconds {TAOBAO_WINDOW[0]} to {TAOBAO_WINDOW[1] - 1}',
  ),
)

REES46 = Format(
  'REES46 eCommerce behavior data from multi category store (2019-Oct.csv, or a folder of it and '
  'later months): '
  'https://www.kaggle.com/datasets/mkechinov/ecommerce-behavior-data-from-multi-category-store',
  events=(
    Table(
      CSV,
      Delimited(),
      (
        Field(
          'event_time',
          'timestamp',
          columns.moment('%Y-%m-%d %H:%M:%S UTC'),
          "a time 'YYYY-MM-DD hh:mm:ss UTC'",
        ),
        event(
          'event_type', view='view', cart='cart', remove_from_cart='remove', purchase='purchase'
        ),
        id_field('product_id', 'item_id'),
        id_field('category_id', 'category_id'),
        *labels(category_code='category_code', brand='brand'),
        price('price'),
        id_field('user_id', 'user_id'),
        *labels(session_id='user_session'),
      ),
    ),
  ),
  attributes=('category_id', 'category_code', 'brand', 'price'),
)

RETAILROCKET = Format(
  'RetailRocket (events.csv, item_properties_part1.csv and _part2.csv): '
  'https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset',
  events=(
    Table(
      ('events.csv',),
      Delimited(),
      (
        time_field('timestamp', 'ms'),
        id_field('visitorid', 'user_id'),
        event('event', view='view', addtocart='cart', transaction='purchase'),
        id_field('itemid', 'item_id'),
      ),
    ),
  ),
  items=(
    Table(
      ('item_properties*.csv',),
      Delimited(),
      (
        time_field('timestamp', 'ms'),
        id_field('itemid', 'item_id'),
        *labels(property='property', category_id='value'),
      ),
      where=pl.col('property') == 'categoryid',
    ),
  ),
  unread=('category_tree.csv',),
)

TMALL = Format(
  'Tmall repeat buyers, IJCAI-15 contest (user_log_format1.csv): '
  'https://tianchi.aliyun.com/dataset/42',
  events=(
    Table(
      ('user_log_format1.csv', 'user_log_format1.csv.gz'),
      Delimited(),
      (
        id_field('user_id', 'user_id'),
        id_field('item_id', 'item_id'),
        id_field('cat_id', 'category_id'),
        *labels(brand='brand_id'),
        Field(
          'time_stamp',
          'timestamp',
          columns.day(TMALL_YEAR, '%m%d', digits=4),
          f'a day MMDD of {TMALL_YEAR}',
        ),
        event(
          'action_type',
          '0 (click), 1 (cart), 2 (purchase) or 3 (favorite)',
          **{'0': 'view', '1': 'cart', '2': 'purchase', '3': 'fav'},
        ),
      ),
    ),
  ),
  attributes=('category_id', 'brand'),
  unread=(
    'user_info_format1.csv',
    'train_format1.csv',
    'test_format1.csv',
    'sample_submission.csv',
  ),
)

OTTO = Format(
  'OTTO recommender systems data set (otto-recsys-train.jsonl and -test.jsonl): '
  'https://github.com/otto-de/recsys-dataset',
  events=(
    Table(
      ('*.jsonl', '*.jsonl.gz'),
      JsonLines(each='events'),
      (
        id_field('session', 'user_id'),
        id_field('aid', 'item_id'),
        time_field('ts', 'ms'),
        event('type', clicks='view', carts='cart', orders='purchase'),
      ),
    ),
  ),
)

MERREC = Format(
  'MerRec of Mercari, a folder of a month (20230501/*.parquet) or of several: '
  'https://huggingface.co/datasets/mercari-us/merrec',
  events=(
    Table(
      ('*.parquet',),
      Parquet(),
      (
        text_id('user_id', 'user_id'),
        text_id('item_id', 'item_id'),
        text_id('session_id', 'session_id', optional=True),
        event(
          'event_id',
          item_view='view',
          item_like='fav',
          item_add_to_cart_tap='cart',
          offer_make='cart',
          buy_start='cart',
          buy_comp='purchase',
        ),
        time_field('stime', 'us'),
        price('price'),
        *labels(title='name', category_id='c2_id', brand='brand_name'),
      ),
    ),
  ),
  attributes=('title', 'category_id', 'brand', 'price'),
)
