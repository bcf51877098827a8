"""The command line: stages, plain commands, strict configs, errors as one line."""
