"""The boundary between a page of the suite and the network: who may ask what, how much may be sent, and how a server ends.

A module of its own because what guards a page should be read, and tested, apart from what the page does.
"""
import hmac
import ipaddress
import json
import os
import secrets
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from util.lib import command, json_file
from util.lib.errors import UserError, reason

BACKLOG = 2048  # connections that may wait
MOST_BODY = 256 << 10  # bytes of a request
PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page")
STATIC = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
}

CLOSE = {"Connection": "close"}  # or the rest of a refused request would be read


class Guard:
    """Refuses requests before the page sees them (ASGI). host: the address that is served. token: what each request must show."""

    def __init__(self, app, host, token):
        self._app, self._host, self._token = app, host, token

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")
        status, why = self._refusal(scope)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                added = {"Cache-Control": "no-store", **HEADERS}.items()
                message["headers"] += [(n.lower().encode(), v.encode()) for n, v in added if n.lower().encode() not in own]
            await send(message)

        await (PlainTextResponse(why, status, CLOSE) if why else self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope):
        """(status, why) of a request that is refused; (200, "") for one that is not."""
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_own_host(host, self._host):
            return 421, "this name is not served; open the URL that the command printed"
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "a request of another site"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > MOST_BODY:
            return 413, f"a request of more than {MOST_BODY >> 10} kB"
        shown = headers.get("x-token", query.get("token", ""))
        if scope["path"] not in STATIC and not hmac.compare_digest(shown.encode(), self._token.encode()):
            return 403, "the token is missing or of an earlier start; open the URL that the command printed"
        return 200, ""


def is_own_host(header, host):
    """Whether a Host header names this server: no name of another site that was made to point here.

    Args:
        header: str. host: the address that is served.
    """
    name = header.rpartition(":")[0] if header[-1:].isdecimal() and ":" in header else header
    name = name.strip("[]").lower()
    if name in ("localhost", host.lower(), socket.gethostname().lower()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback or not is_loopback(host)
    except ValueError:
        return False


def is_loopback(host):
    """Whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_json(request, schema):
    """The JSON that a request holds, checked against a schema of json_file.check. Raises HTTPException."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise HTTPException(413, f"a request of more than {MOST_BODY >> 10} kB", CLOSE)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None
    if why := json_file.check(value, schema, "the request"):
        raise HTTPException(400, why)
    return value


def listen(host, port):
    """A socket that waits for connections. host, port: 0 for any free one. Raises UserError where it cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        raise UserError(f"--host={host} --port={port}: cannot be served: {reason(error)}; give another, or --port=0") from None
    listener.listen(BACKLOG)
    return listener


def serve(listener, host, routes):
    """Serves a page until SIGINT or SIGTERM.

    Args:
        listener: of listen(). host: what it was given. routes: list of starlette.routing.Route, beside the static files of PAGE.
    """
    token = secrets.token_urlsafe(16)

    async def user_error(_, error):
        return PlainTextResponse(str(error), 500)

    static = [Route(path, _static(name, kind)) for path, (name, kind) in STATIC.items()]
    app = Guard(Starlette(routes=static + routes, exception_handlers={UserError: user_error}), host, token)
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}/?token={token}"
    command.stop_on_signals()  # uvicorn raises again, at its end, the signals that ended it
    config = uvicorn.Config(
        app, lifespan="off", log_level="critical", access_log=False, server_header=False, timeout_graceful_shutdown=2, ws="none",
        backlog=BACKLOG,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            print(f"open {url} (Ctrl-C ends it)", flush=True)  # signals are handled from here on

    Server(config).run(sockets=[listener])


def _static(name, kind):
    with open(os.path.join(PAGE, name), "rb") as file:
        content = file.read()

    async def answer(_):
        return Response(content, media_type=kind)

    return answer
