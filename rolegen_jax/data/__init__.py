"""Logs and what is predicted from them: the data contract (`events`), one adapter per public log format (`adapters`),
the indexed log (`log`), occasions, cohorts and splits (`occasions`), the stage that ties them together (`prepare`),
the simulated world, and the batches that training reads. No jax below the batches."""
