"""The command line: one file for each command, with its options and the function that runs it."""
