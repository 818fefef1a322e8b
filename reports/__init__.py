"""Reports: what was measured, kept, compared and shown. The only input is a `Record`."""
