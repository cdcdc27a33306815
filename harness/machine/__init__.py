"""What the compilers and the hardware counters say."""
