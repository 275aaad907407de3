"""Parts of tools/check_reliability.py: what is broken on purpose, and what must hold then."""
