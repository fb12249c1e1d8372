"""What runs: planning for what is found, training, a run with all it writes, and models by themselves."""
