"""What scripts/gpu-proof does."""
