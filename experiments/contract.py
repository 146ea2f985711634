"""Your own log, in the format of the data contract (docs/guide.md).

  rolegen train --experiment=contract --set data.path=my_shop --workdir=runs/shop

`data.path` is a folder under $ROLEGEN_DATA, or an absolute path. Settings are those of
`alibaba2014`: expect minutes for a thousand users, and judge HI@10 by the baselines beside it.
Where items have words, `contract:smollm2` has a published language model reason
(experiments/smollm2.py).
"""

import dataclasses

from experiments import alibaba2014, smollm2
from rolegen_jax import config as c


def get_config(arg: str = '') -> c.Config:
  path = 'contract' if arg in ('', smollm2.NAME) else arg
  config = dataclasses.replace(
    alibaba2014.get_config(),
    name='contract',
    data=c.DataConfig(format='contract', path=path),
  )
  return smollm2.with_smollm2(config) if arg == smollm2.NAME else config
