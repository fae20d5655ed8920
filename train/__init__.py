"""Training: the entry point `train.py`, the one loop, objectives, configuration and training state."""
