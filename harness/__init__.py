"""Harness: decides what to run and how to judge. Imports no torch and no concrete backend."""

__version__ = "0.1.0"
