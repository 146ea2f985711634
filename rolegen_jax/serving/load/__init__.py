"""`rolegen loadtest`: what is sent when (plan, shelf), an open-loop client that sends it and checks
the answers (drive), and what came of it (figures). None of it needs jax."""
