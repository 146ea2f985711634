"""The folder of a pretrained decoder: config.json, safetensors, tokenizer.

If we exported it, it has a rolegen.json too. `configure` turns `reasoner.pretrained=FOLDER` into
settings, once, before anything else reads the config; `Folder.load` gives the parameters. A hash
binds the two: a folder whose tokenizer is no longer that of the settings is refused.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file

from rolegen_jax.config import Config, ConfigError, ReasonerConfig
from rolegen_jax.data.files import DataError
from rolegen_jax.models import functional, lora
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.pretrained import families, load
from rolegen_jax.pretrained.files import TensorFiles, read_json
from rolegen_jax.text.tokenizers import TextVocabulary, open_tokenizer
from rolegen_jax.vocab import Vocabulary

# Of a folder that we exported: its vocabulary, and the tokenizer before our tokens were appended.
OURS = 'rolegen.json'
# The equation of intent, which no decoder has.
INTENT = 'rolegen_intent.safetensors'


class Folder:
  """A folder whose config.json, tensor names and tokenizer are consistent."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Check everything but the weights, before a weight is read.

    Raises DataError; ConfigError on a config.json of an unsupported kind.
    """
    self.path = pathlib.Path(path)
    if not self.path.is_dir():
      raise DataError(f'{self.path}: no such folder; must be the folder of a pretrained model')
    self.hf_config = read_json(self.path / 'config.json')
    try:
      self.transformer = families.read_config(self.hf_config)
    except families.Unsupported as error:
      raise families.Unsupported(f'{self.path}/{error}') from error
    self.files = TensorFiles(self.path)
    self.tokenizer = open_tokenizer(self.path)
    self.ours = read_json(self.path / OURS) if (self.path / OURS).exists() else None
    self._check_tokenizer()

  def _check_tokenizer(self) -> None:
    tokenizer_path = self.path / self.tokenizer.file
    rows = self.files.shape(families.tables(self.transformer)['tokens'])[0]
    if self.hf_config.get('vocab_size') != rows:
      raise DataError(
        f'{self.path}: config.json has vocab_size={self.hf_config.get("vocab_size")}, '
        f'the token table has {rows} rows; must be the same'
      )
    if self.tokenizer.size > rows:
      raise DataError(
        f'{tokenizer_path}: has {self.tokenizer.size} pieces, the weights have {rows} rows; '
        'must be the tokenizer of these weights'
      )
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
      value = self.hf_config.get(name)
      pieces = () if value is None else np.atleast_1d(value)
      for piece in pieces:
        if piece >= 0 and not self.tokenizer.is_delimiter(int(piece)):
          raise DataError(
            f'{tokenizer_path}: piece {piece}, which is {name} in config.json, is not a delimiter '
            'there; must be the tokenizer of these weights'
          )
    if self.ours and self.ours['tokenizer_with_ours'] != self.tokenizer.digest:
      raise DataError(
        f'{tokenizer_path}: its hash is {self.tokenizer.digest}, {OURS} has '
        f'{self.ours["tokenizer_with_ours"]}; must be the file that was exported'
      )

  @property
  def text(self) -> tuple[int, str]:
    """(text pieces, hash of the tokenizer), before our tokens were appended."""
    if self.ours:
      return self.ours['text_pieces'], self.ours['tokenizer']
    return self.hf_config['vocab_size'], self.tokenizer.digest

  def rows(self, vocab: Vocabulary) -> load.TokenRows:
    """Return where the rows of `vocab` are in the checkpoint's tables.

    Raises ConfigError when the settings are those of another folder.
    """
    pieces, tokenizer = self.text
    if (vocab.text_pieces, vocab.tokenizer) != (pieces, tokenizer):
      raise ConfigError(
        f'reasoner.pretrained={self.path}: {pieces} text pieces of tokenizer {tokenizer}, '
        f'the settings have {vocab.text_pieces} of {vocab.tokenizer!r}; '
        'must be the folder that the run began with'
      )
    if self.ours and self.ours['vocabulary'] != vocab.digest:
      raise ConfigError(
        f'reasoner.pretrained={self.path}: made for vocabulary {self.ours["vocabulary"]}, '
        f'this run has {vocab.digest}; '
        'must have the same levels and codes of semantic IDs, and roles'
      )
    text = TextVocabulary(vocab, self.tokenizer)
    for level in range(vocab.levels):
      start, size = vocab.blocks[f'sid{level}']
      n_known = int((text.known[start : start + size] >= 0).sum())
      if n_known not in (0, size):
        raise ConfigError(
          f'semantic_ids.codes={size}: the tokenizer of {self.path} knows {n_known} codes of '
          f'level {level}; must be at most that many'
        )
    return load.TokenRows(vocab, self.hf_config['vocab_size'], text.known, text.descriptions)

  def load(self, config: ReasonerConfig, vocab: Vocabulary, mesh: Mesh) -> dict:
    """Return the reasoner's parameters on the mesh."""
    base = load.parameters(self.files, config, self.rows(vocab), mesh)
    make = functional.Part(lambda rngs: Reasoner(config, vocab, rngs=rngs), lora.trains)
    params = functional.join(base, functional.init(make, jax.random.key(0), mesh)[1])
    if not self.ours:
      return params
    exported = load_file(self.path / INTENT)
    intent = {
      name: jax.device_put(exported[name], initial.sharding)
      for name, initial in params['intent'].items()
    }
    return params | {'intent': intent}


def configure(config: Config) -> Config:
  """Return the config with the reasoner's sizes and text vocabulary from `reasoner.pretrained`.

  How the reasoner computes (remat, dtype, attention) stays as the config says. A config that was
  configured before is returned unchanged, and needs no folder. Raises ConfigError, DataError.
  """
  reasoner = config.reasoner
  if not reasoner.pretrained or reasoner.tokenizer:
    return config
  folder = Folder(reasoner.pretrained)
  text_pieces, tokenizer = folder.text
  own = {name: getattr(reasoner.transformer, name) for name in ('remat', 'dtype', 'attention')}
  transformer = dataclasses.replace(folder.transformer, **own)
  reasoner = dataclasses.replace(
    reasoner, transformer=transformer, text_pieces=text_pieces, tokenizer=tokenizer
  )
  return dataclasses.replace(config, reasoner=reasoner)
