"""Which call holds which connection of one upstream."""
