"""The pure core: facts in, decisions out. No clock, random, thread or I/O in here."""
