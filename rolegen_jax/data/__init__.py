"""Read logs and prepare what models are trained on: the data contract (`events`), adapters of
public formats, the indexed log, occasions with cohorts and splits, examples, and batches. `shards/`
converts logs that do not fit in memory. Imports only the core and `runtime`."""
