"""Command line: stages, plain commands, configs, runs, errors in one line."""
