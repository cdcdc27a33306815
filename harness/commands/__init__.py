"""One short file per command of bench.py."""
