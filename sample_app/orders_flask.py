"""The orders service as a Flask application. The lines marked (headrace) are all that headrace asks for."""

from __future__ import annotations

import os
from typing import Any

import requests
from flask import Flask

import headrace
from sample_app.leftovers import report_at_exit

BILLING_URL = os.environ["BILLING_URL"]
INVENTORY_URL = os.environ["INVENTORY_URL"]

report_at_exit()
app = Flask(__name__)
app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, os.environ["HEADRACE_FILE"])  # type: ignore[method-assign]  # (headrace)
app.register_error_handler(requests.RequestException, headrace.problem)  # (headrace)


@app.get("/orders/<int:number>")
def order(number: int) -> Any:
    """Two ordinary calls of requests, governed by their URLs."""
    invoice = requests.get(f"{BILLING_URL}/invoices/{number}", timeout=2)
    stock = requests.get(f"{INVENTORY_URL}/stock/{number}", timeout=2)
    for answer in (invoice, stock):
        if not answer.ok:
            return answer.json(), answer.status_code
    return {"order": number, "invoice": invoice.json(), "stock": stock.json()}


@app.get("/invoices/<int:number>")
def invoice(number: int) -> Any:
    answer = requests.get(f"{BILLING_URL}/invoices/{number}", timeout=2)
    return answer.json(), answer.status_code


@app.post("/charges")
def charge() -> Any:
    """A POST, safe to repeat: the file has an idempotency key made for it."""
    answer = requests.post(f"{BILLING_URL}/charges", json={"amount": 7}, timeout=2)
    return answer.json(), answer.status_code


@app.get("/stock/<int:number>")
def stock(number: int) -> Any:
    """The upstream by its name."""
    answer = headrace.current().upstream("inventory").get(f"/stock/{number}")
    return answer.json(), answer.status_code


@app.get("/rules")
def rules() -> Any:
    """What is in force, for the story. An application has no need of this."""
    return headrace.current().status()
