"""What pruning saves and costs: bench, eval and calibrate."""
