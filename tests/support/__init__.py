"""What the tests share: clocks, plans, servers."""
