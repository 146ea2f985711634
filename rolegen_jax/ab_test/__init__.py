"""A/B tests in the simulated shop: policies, arms, lifts and the picture."""
