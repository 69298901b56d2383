"""The orders service as a Starlette application. The lines marked (headrace) are all that headrace asks for."""

from __future__ import annotations

import os

import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import headrace
from sample_app.leftovers import ReportsAfterShutdown

BILLING_URL = os.environ["BILLING_URL"]
INVENTORY_URL = os.environ["INVENTORY_URL"]


def order(request: Request) -> JSONResponse:
    """Two ordinary calls of requests, governed by their URLs. A plain `def`: Starlette runs it in a thread."""
    number = request.path_params["number"]
    invoice = requests.get(f"{BILLING_URL}/invoices/{number}", timeout=2)
    stock = requests.get(f"{INVENTORY_URL}/stock/{number}", timeout=2)
    for answer in (invoice, stock):
        if not answer.ok:
            return JSONResponse(answer.json(), answer.status_code)
    return JSONResponse({"order": number, "invoice": invoice.json(), "stock": stock.json()})


def invoice(request: Request) -> JSONResponse:
    answer = requests.get(f"{BILLING_URL}/invoices/{request.path_params['number']}", timeout=2)
    return JSONResponse(answer.json(), answer.status_code)


def charge(request: Request) -> JSONResponse:
    """A POST, safe to repeat: the file has an idempotency key made for it."""
    answer = requests.post(f"{BILLING_URL}/charges", json={"amount": 7}, timeout=2)
    return JSONResponse(answer.json(), answer.status_code)


def stock(request: Request) -> JSONResponse:
    """The upstream by its name."""
    hr = request.state.headrace
    answer = hr.upstream("inventory").get(f"/stock/{request.path_params['number']}")
    return JSONResponse(answer.json(), answer.status_code)


def rules(request: Request) -> JSONResponse:
    """What is in force, for the story. An application has no need of this."""
    return JSONResponse(request.state.headrace.status())


app = Starlette(
    routes=[
        Route("/orders/{number:int}", order),
        Route("/invoices/{number:int}", invoice),
        Route("/charges", charge, methods=["POST"]),
        Route("/stock/{number:int}", stock),
        Route("/rules", rules),
    ],
    exception_handlers={requests.RequestException: headrace.asgi_problem},  # (headrace)
)
app = headrace.ASGIMiddleware(app, os.environ["HEADRACE_FILE"])  # type: ignore[assignment]  # (headrace)
app = ReportsAfterShutdown(app)  # type: ignore[assignment]  # for the story only
