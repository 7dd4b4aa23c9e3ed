"""What the benchmarks share: states, peers, trials, the machine."""
