"""What is right: the problem, the literal operator, the float64 oracle, the bands in plain torch."""
