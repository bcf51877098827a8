"""What runs several trainings: the demo, the open benchmark, sweeps, robustness."""
