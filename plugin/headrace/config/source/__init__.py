"""From files, secrets and the environment to one tree, with the place where each value was written."""
