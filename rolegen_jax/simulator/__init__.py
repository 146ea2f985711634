"""The simulated shop log: a seeded causal model of shoppers with planted roles (`world`), its
constants and fitted presets (`rules`), traits, behavior, and the marginals it is judged by. Imports
only the core."""
