"""What the lab knows of operators, an object each: chain, tail, and the class that one of your own extends."""
