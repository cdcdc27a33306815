"""Files of others: made, judged."""
