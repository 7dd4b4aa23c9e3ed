"""What every layer stands on: errors, ids, clocks, configuration and units. Standard library only."""
