"""What can be seen from outside: rare facts as log events, totals and gauges as metrics."""
