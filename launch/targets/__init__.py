"""Where a job runs: one pure renderer a target, job -> exact text; `local` also runs it."""
