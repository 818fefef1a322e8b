"""Backends: everything that turns a checkpoint and token ids into numbers.

Knows no suites, no verdicts, no reports. Importing this package loads nothing heavy.
"""
