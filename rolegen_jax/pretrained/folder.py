"""The folder of a pretrained decoder: config.json, safetensors, tokenizer; or all in a GGUF file.

If we exported it, it has a rolegen.json too. `configure` turns `reasoner.pretrained=FOLDER` into
settings, once, before anything else reads the config; `Folder.load` gives the parameters. A hash
binds the two: a folder whose tokenizer is no longer that of the settings is refused.
"""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file

from rolegen_jax.config import Config, ConfigError, ReasonerConfig, TransformerConfig
from rolegen_jax.data.files import DataError, as_data_error
from rolegen_jax.models import functional, lora
from rolegen_jax.models.intent import EQUATIONS
from rolegen_jax.models.reasoner import Reasoner
from rolegen_jax.pretrained import families, load, source
from rolegen_jax.pretrained.fields import shown
from rolegen_jax.pretrained.files import EQUATIONS_FILE, TensorFiles, Tensors, read_json
from rolegen_jax.pretrained.gguf import open_gguf
from rolegen_jax.pretrained.pieces import open_checked
from rolegen_jax.runtime import mirror
from rolegen_jax.text.tokenizers import TextVocabulary
from rolegen_jax.vocab import Vocabulary

# Of a folder that we exported: its vocabulary, and the tokenizer before our tokens were appended.
OURS = 'rolegen.json'
# Its fields, each of a type.
_OURS_FIELDS = dict(vocabulary=str, text_pieces=int, tokenizer=str, tokenizer_with_ours=str)


class Folder:
  """A folder, or a GGUF file, whose settings, tensor names and tokenizer are consistent."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Check everything but the numbers of the weights, of which only a head is read.

    Raises DataError; ConfigError on a config.json of an unsupported kind.
    """
    self.path = source.open_source(path)
    one_file = open_gguf(self.path) if self.path.is_file() else None
    self.hf_config = one_file.config if one_file else read_json(self.path / 'config.json')
    try:
      self.transformer = families.read_config(self.hf_config)
    except families.Unsupported as error:
      raise families.Unsupported(f'{self.path}/{error}') from error
    self.files: Tensors = one_file.tensors if one_file else TensorFiles(self.path)
    self.transformer = dataclasses.replace(self.transformer, tied=self._is_tied())
    rows = self._rows()
    load.check(self.files, self.transformer, rows)
    self.tokenizer = one_file.tokenizer if one_file else open_checked(self.path, rows)
    self.ours = self._read_ours()

  def _is_tied(self) -> bool:
    """Return whether the readout is the token table.

    As in transformers, a head of other numbers is a head whatever `tie_word_embeddings` says. One
    that is missing is refused: transformers would draw it at random.
    """
    has_head = families.HEAD in self.files.names
    if not self.transformer.tied and not has_head:
      said = self.hf_config.get('tie_word_embeddings')
      raise DataError(
        f'{self.path}: no tensor {families.HEAD}, and config.json has tie_word_embeddings='
        f'{"absent, which means false" if said is None else "false"}; the head must be there, or '
        'the flag be true'
      )
    if not self.transformer.tied or not has_head:
      return self.transformer.tied
    return self.files.equal(families.TOKENS, families.HEAD)

  def _rows(self) -> int:
    """Return the rows of the token table, which are those that config.json has."""
    rows = self.files.shape(families.TOKENS)[0]
    if self.hf_config.get('vocab_size') != rows:
      raise DataError(
        f'{self.path}: config.json has vocab_size={shown(self.hf_config.get("vocab_size"))}, '
        f'the token table has {rows} rows; must be the same'
      )
    return rows

  def _read_ours(self) -> dict | None:
    """Return what we wrote into a folder that we exported; None for any other folder."""
    path, equations = self.path / OURS, self.path / EQUATIONS_FILE
    if path.exists() != equations.exists():
      there, missing = (path, equations) if path.exists() else (equations, path)
      raise DataError(f'{missing}: no such file; must be there beside {there.name}')
    if not path.exists():
      return None
    ours = read_json(path)
    for name, kind in _OURS_FIELDS.items():
      if type(ours.get(name)) is not kind:
        raise DataError(
          f'{path}: {name}={shown(ours.get(name))}; must be as it was exported, a {kind.__name__}'
        )
    tokenizer_path = self.path / self.tokenizer.file
    if ours['tokenizer_with_ours'] != self.tokenizer.digest:
      raise DataError(
        f'{tokenizer_path}: its hash is {self.tokenizer.digest}, {OURS} has '
        f'{ours["tokenizer_with_ours"]}; must be the file that was exported'
      )
    if not 1 <= ours['text_pieces'] <= self.hf_config['vocab_size']:
      raise DataError(
        f'{path}: text_pieces={ours["text_pieces"]}; must be 1 to '
        f'{self.hf_config["vocab_size"]}, the rows of the token table'
      )
    return ours

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
    initial = functional.flatten({name: params[name] for name in EQUATIONS})
    exported = self._read_equations(initial)
    leaves = {name: jax.device_put(exported[name], x.sharding) for name, x in initial.items()}
    return params | functional.unflatten(leaves)

  def _read_equations(self, initial: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Return the exported equations. Raises DataError where they are not like `initial`."""
    path = self.path / EQUATIONS_FILE
    with as_data_error(path, 'as it was exported'):
      exported = load_file(path)
    shapes = {name: array.shape for name, array in exported.items()}
    expected = {name: array.shape for name, array in initial.items()}
    if shapes != expected:
      raise DataError(f'{path}: has {shapes}; must be {expected}, as the settings have it')
    return exported


def configure(config: Config) -> Config:
  """Return the config with the reasoner's sizes and text vocabulary from `reasoner.pretrained`.

  How the reasoner computes (remat, dtype, attention) stays as the config says. A config that was
  configured before is returned unchanged, and needs no folder. Raises ConfigError, DataError.
  """
  reasoner = config.reasoner
  if not reasoner.pretrained or reasoner.tokenizer:
    return config
  folder = Folder(reasoner.pretrained)
  return _sized(config, folder.transformer, *folder.text)


def sized(config: Config) -> Config:
  """Return the config with the sizes of `reasoner.pretrained`, of which config.json is read alone.

  It may be that file too, or a folder with nothing else: enough to compile what would train, not to
  train. Raises ConfigError, DataError.
  """
  path = mirror.opened(config.reasoner.pretrained)
  if path.suffix != '.json' and not (path / 'config.json').is_file():
    # A package or a GGUF file, or it says what is missing.
    path = source.open_source(config.reasoner.pretrained)
  path = mirror.fetch(path / 'config.json' if path.is_dir() else path)
  hf_config = read_json(path) if path.suffix == '.json' else open_gguf(path).config
  try:
    transformer = families.read_config(hf_config)
  except families.Unsupported as error:
    raise families.Unsupported(f'{path}: {error}') from error
  pieces = hf_config.get('vocab_size')
  if type(pieces) is not int or pieces < 1:
    raise DataError(f'{path}: vocab_size={shown(pieces)}; must be the rows of the token table')
  return _sized(config, transformer, pieces, '')


def _sized(
  config: Config, transformer: TransformerConfig, text_pieces: int, tokenizer: str
) -> Config:
  reasoner = config.reasoner
  own = {name: getattr(reasoner.transformer, name) for name in ('remat', 'dtype', 'attention')}
  transformer = dataclasses.replace(transformer, **own)
  reasoner = dataclasses.replace(
    reasoner, transformer=transformer, text_pieces=text_pieces, tokenizer=tokenizer
  )
  return dataclasses.replace(config, reasoner=reasoner)
