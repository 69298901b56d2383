"""What is wrong with a configuration, and what is only doubtful."""
