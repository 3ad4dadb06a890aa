"""The command line: decode, call, print. One small file per group of commands."""
