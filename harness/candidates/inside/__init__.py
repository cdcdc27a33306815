"""What runs in a candidate's own process: tensors in, a call of the candidate, bytes out. It decides nothing."""
