"""What each command does, from a configuration to files."""
