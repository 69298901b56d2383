"""urllib3's classes over a lease, and what their answers and errors mean."""
