"""A server on this machine that can fail as servers do."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror:
    """A server of named bytes; it remembers what was asked.

    ``cut_after``: bytes after which the connection is cut; ``stall_after``: bytes after which it
    sends nothing until :meth:`go_on`; ``ranges``: "kept", "ignored" (200 and all of it), or "wrong"
    (206 and another range than was asked for).
    """

    def __init__(self, files, cut_after=None, stall_after=None, ranges="kept"):
        self.files, self.asked = files, []
        self.stalled, self.released = threading.Event(), threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, asked = self.path.lstrip("/"), self.headers.get("Range")
                mirror.asked.append((name, asked))
                if name not in mirror.files:
                    return self.send_error(404)
                body, start = mirror.files[name], 0
                if asked and ranges != "ignored":
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        return self.send_error(416)
                    start += 7 * (ranges == "wrong")
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                body = body[start : start + (cut_after or len(body))]
                if stall_after is not None:
                    self.wfile.write(body[:stall_after])
                    mirror.stalled.set()
                    mirror.released.wait(60)
                    body = body[stall_after:]
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args):
                pass  # a client that was killed is no news

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
