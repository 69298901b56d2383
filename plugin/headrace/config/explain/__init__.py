"""What a configuration means, in words: for URLs, for keys, as a schema."""
