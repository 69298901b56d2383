"""httpx: its calls are counted where a rule names their URL. They are not governed yet."""
