"""Measures: one module a suite. Each collects from a session and compares with the truth; none judges."""
