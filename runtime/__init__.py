"""What every backend shares between tensors and launches."""
