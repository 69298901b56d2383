"""What headrace shows of itself: log events and metrics."""
