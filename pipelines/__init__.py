"""What ships with the weights: one self-contained pipeline file."""
