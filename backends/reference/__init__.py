"""The mathematics as named equations, and what is built on them: truth, traces, honest rounding."""
