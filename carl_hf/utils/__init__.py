"""Leaves: small helpers that know nothing of the method and import nothing else of carl_hf."""
