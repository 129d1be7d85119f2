"""Stands for the release host: serves the folder argv[1] on a free port of loopback, which it prints.

Of a file for which NAME.stalls lies beside it, half is sent, and then nothing.
"""

import functools
import http.server
import os
import sys
import time


class Handler(http.server.SimpleHTTPRequestHandler):
    def copyfile(self, source, outputfile):
        if not os.path.exists(source.name + ".stalls"):
            super().copyfile(source, outputfile)
            return
        outputfile.write(source.read(os.fstat(source.fileno()).st_size // 2))
        outputfile.flush()
        time.sleep(600)

    def log_message(self, *_):
        pass


handler = functools.partial(Handler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_port, flush=True)
server.serve_forever()
