"""Known-wrong implementations, and which judges condemn them."""
