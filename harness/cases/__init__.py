"""What is checked and timed, as data, and the tensors for it."""
