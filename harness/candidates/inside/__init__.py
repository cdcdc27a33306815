"""What runs in a candidate's own process: it takes tensors in, calls the candidate, and sends bytes out. It decides nothing."""
