"""Engines that people run, each in a child process that opens the checkpoint by itself; see docs/engines.md."""
