"""Who holds which connection of one upstream."""
