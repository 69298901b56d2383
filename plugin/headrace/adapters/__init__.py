"""The surfaces that calls come through: requests, and urllib3 by handle."""
