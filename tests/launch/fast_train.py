"""`python fast_train.py train --flags`: `python -m rolegen_jax train`, compiled fast."""

from compile_fast import compile_fast

from rolegen_jax.__main__ import main

if __name__ == '__main__':
  compile_fast()
  main()
