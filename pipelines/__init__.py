"""What ships with the weights: a pipeline, and the files that are written into it when it is saved."""
