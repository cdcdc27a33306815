"""The bands in plain torch operations: what runs where neither kernel set does."""
