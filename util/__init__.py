"""The commands, one per file. What they share is in util/lib."""
