"""Commands that run several trainings: demo, open benchmark, sweeps, robustness."""
