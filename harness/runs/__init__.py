"""Cases checked and timed, and what was found entered in a record."""
