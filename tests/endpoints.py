"""A real chat endpoint on this machine, for what asks one."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(handler):
    """A server on this machine that answers with a handler class; yields its address."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


@contextmanager
def chat_server(reply):
    """An endpoint that answers each request with what ``reply(number, body)`` returns.

    That is a text (the message's content), a dictionary (the whole reply), bytes (sent as they are), an HTTP code, or
    (code, headers, bytes); with None for the code the bytes stand in place of the status line.
    Yields its address and the list of the bodies that it has seen.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            said = reply(len(seen), body)
            if isinstance(said, str):
                said = {"choices": [{"message": {"content": said}}]}
            if isinstance(said, dict):
                said = json.dumps(said).encode()
            said = (said, {}, b"") if isinstance(said, int) else (200, {}, said) if isinstance(said, bytes) else said
            code, headers, body = said
            if code is not None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with serving(Handler) as url:
        yield f"{url}/v1", seen
