"""What a run found, as plain data."""
