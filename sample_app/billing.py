"""The billing service: a process of its own, with faults that can be switched (see `faulty`)."""

from sample_app.faulty import serve

if __name__ == "__main__":
    serve("billing")
