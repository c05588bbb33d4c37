"""Command lines: parsing, resuming, printing."""
