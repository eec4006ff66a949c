"""The command line: parse the arguments, then one call of a job."""
