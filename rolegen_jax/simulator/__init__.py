"""The simulated shop log: a seeded causal model of shoppers with planted roles. Imports only the core."""
