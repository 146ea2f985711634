"""A folder of a pretrained decoder: config.json, safetensors, tokenizer, and, if we exported it, rolegen.json.

`configure` turns `reasoner.pretrained=FOLDER` into settings, once, before anything else reads the config; `Folder.load` gives the
parameters. In between stands a hash: a folder whose tokenizer is no longer the one of the settings is refused.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file

from rolegen_jax.config import Config, ConfigError, ReasonerConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional, lora
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.pretrained import families, load
from rolegen_jax.pretrained.files import TensorFiles, read_json
from rolegen_jax.text.tokenizers import TextVocabulary, open_tokenizer
from rolegen_jax.vocab import Vocabulary

OURS = 'rolegen.json'  # of a folder that we exported: its vocabulary, and the tokenizer before our tokens were appended
INTENT = 'rolegen_intent.safetensors'  # the equation of intent, which no decoder has


class Folder:
  """Raises DataError, or ConfigError on a config.json of an unsupported kind, before a weight is read."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if not self.path.is_dir():
      raise DataError(f'{self.path}: no such folder; must be the folder of a pretrained model')
    self.said = read_json(self.path / 'config.json')
    try:
      self.transformer = families.read_config(self.said)
    except families.Unsupported as error:
      raise families.Unsupported(f'{self.path}/{error}') from error
    self.files = TensorFiles(self.path)
    self.tokenizer = open_tokenizer(self.path)
    self.ours = read_json(self.path / OURS) if (self.path / OURS).exists() else None
    self._check_tokenizer()

  def _check_tokenizer(self) -> None:
    rows, where = (
      self.files.shape(families.tables(self.transformer)['tokens'])[0],
      self.path / self.tokenizer.file,
    )
    if self.said.get('vocab_size') != rows:
      raise DataError(
        f'{self.path}: config.json has vocab_size={self.said.get("vocab_size")}, the token table has {rows} rows; must be the same'
      )
    if self.tokenizer.size > rows:
      raise DataError(
        f'{where}: has {self.tokenizer.size} pieces, the weights have {rows} rows; must be the tokenizer of these weights'
      )
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
      for piece in np.atleast_1d(self.said[name]) if self.said.get(name) is not None else ():
        if piece >= 0 and not self.tokenizer.is_delimiter(int(piece)):
          raise DataError(
            f'{where}: piece {piece}, which is {name} in config.json, is no mark there; must be the tokenizer of these weights'
          )
    if self.ours and self.ours['tokenizer_with_ours'] != self.tokenizer.digest:
      expected = self.ours['tokenizer_with_ours']
      raise DataError(
        f'{where}: its hash is {self.tokenizer.digest}, {OURS} has {expected}; must be the file that was exported'
      )

  @property
  def text(self) -> tuple[int, str]:
    """(text pieces, hash of the tokenizer), before our tokens were appended."""
    if self.ours:
      return self.ours['text_pieces'], self.ours['tokenizer']
    return self.said['vocab_size'], self.tokenizer.digest

  def rows(self, vocab: Vocabulary) -> load.TokenRows:
    """Raises ConfigError when the settings are those of another folder."""
    if (vocab.text_pieces, vocab.tokenizer) != self.text:
      raise ConfigError(
        f'reasoner.pretrained={self.path}: {self.text[0]} text pieces of tokenizer {self.text[1]}, the settings have '
        f'{vocab.text_pieces} of {vocab.tokenizer!r}; must be the folder that the run began with'
      )
    if self.ours and self.ours['vocabulary'] != vocab.digest:
      raise ConfigError(
        f'reasoner.pretrained={self.path}: made for vocabulary {self.ours["vocabulary"]}, this run has {vocab.digest}; '
        'must have the same levels and codes of semantic IDs, and roles'
      )
    text = TextVocabulary(vocab, self.tokenizer)
    for level in range(vocab.levels):
      start, size = vocab.blocks[f'sid{level}']
      known = int((text.known[start : start + size] >= 0).sum())
      if known not in (0, size):
        raise ConfigError(
          f'semantic_ids.codes={size}: the tokenizer of {self.path} knows {known} codes of level {level}; must be at most so many'
        )
    return load.TokenRows(vocab, self.said['vocab_size'], text.known, text.says)

  def load(self, config: ReasonerConfig, vocab: Vocabulary, mesh) -> dict:
    """The reasoner's parameters on the mesh."""
    params = load.parameters(self.files, config, self.rows(vocab), mesh)
    make = functional.Part(lambda rngs: Reasoner(config, vocab, rngs=rngs), lora.trains)
    params = functional.join(params, functional.init(make, jax.random.key(0), mesh)[1])
    if not self.ours:
      return params
    held = load_file(self.path / INTENT)
    return params | {
      'intent': {
        name: jax.device_put(held[name], fresh.sharding) for name, fresh in params['intent'].items()
      }
    }


def configure(config: Config) -> Config:
  """The config with the reasoner's sizes and text vocabulary as `reasoner.pretrained` has them. How it computes (remat, dtype,
  attention) stays as the config says; a config that was settled before stays whole, and needs no folder. Raises ConfigError, DataError."""
  r = config.reasoner
  if not r.pretrained or r.tokenizer:
    return config
  folder = Folder(r.pretrained)
  pieces, digest = folder.text
  t = dataclasses.replace(
    folder.transformer,
    **{name: getattr(r.transformer, name) for name in ('remat', 'dtype', 'attention')},
  )
  return dataclasses.replace(
    config, reasoner=dataclasses.replace(r, transformer=t, text_pieces=pieces, tokenizer=digest)
  )
