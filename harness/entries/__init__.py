"""What the bench compares."""
