"""Launch constants tried on the card at hand."""
