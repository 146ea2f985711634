"""Catalogues of 1e4 to 2e7 SIMULATED items, 4 levels of 256 codes: memory, masks of a decoding step, and swaps of items while they serve.

  python -m experiments.benchmarks.catalogue

A swap of n items takes n out and puts n others in, without and with regions, and is timed from the new items' codes on the host
until every table on the device is ready for the next call; a restock gives n items other regions. Nothing may compile meanwhile
and every ID must lead to its item afterwards, or the run fails. Beside them: tables built afresh, as without a swap; a CSR trie in
JAX (the masks in turn with ours); and, up to 1e5 items, nested Python dictionaries. `python -m experiments.benchmarks.draw` makes the picture.
"""

from absl import flags

from rolegen_jax import commands
from rolegen_jax.config import ConfigError

LEVELS, CODES, REQUESTS, BEAMS = 4, 256, 64, 50

_SIZES = flags.DEFINE_list('sizes', ['10000', '100000', '1000000', '10000000', '20000000'], 'Items of the catalogues, ascending.')
_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed rounds of masks and of swaps of up to 10,000 items; larger swaps: 3.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', '', 'Folder of catalogue.json; default: that of the benchmarks.')


def main() -> None:
  from experiments.benchmarks import catalogue_parts as parts
  from experiments.benchmarks import measure

  sizes = [int(float(size)) for size in _SIZES.value]
  if sizes != sorted(sizes) or sizes[0] < 1000:
    raise ConfigError(f'--sizes={",".join(_SIZES.value)}: must ascend from at least 1000, as each size adds to the peak memory of the process')
  found = dict(
      simulated='uniform random IDs, catalogue_parts.simulated_ids', levels=LEVELS, codes=CODES, requests=REQUESTS, beams=BEAMS,
      sizes=[parts.measure_size(size, LEVELS, CODES, (REQUESTS, BEAMS), _REPEATS.value, print) for size in sizes],
  )
  path = measure.keep('catalogue', found, folder=_OUTPUT.value or measure.FOLDER)
  print(f'-> {path}')


if __name__ == '__main__':
  commands.run(main)
