"""A way to Redis that is cut right after appends: `python -m tests.chaos.proxy --to PORT --cuts N --state FILE`.

Every third append is cut, until N were: Redis gets the whole command, the producer gets no answer. By turns the
connection is closed before Redis answers, and after it has. The state file tells the proxy's port and the cuts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path

from shared.process import guard

EVERY = 3
APPEND = b"payload"  # the argument that only an append has


class Proxy:
    """Counts and cuts."""

    def __init__(self, to: int, cuts: int, state: Path) -> None:
        self._to, self._wanted, self._state = to, cuts, state
        self._appends = self.cut = self.port = 0

    async def serve(self) -> None:
        """Serves for ever."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        self._tell()
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self._to, limit=2**24)
            writers.append(redis_writer)
            while command := await reader.read(2**20):
                redis_writer.write(command)
                await redis_writer.drain()
                cut = self._is_due(command)
                if cut and self.cut % 2:
                    writer.close()
                answer = await redis_reader.read(2**20)
                if cut and not answer.startswith(b"-"):
                    self.cut += 1
                    self._tell()
                    return
                writer.write(answer)
                await writer.drain()
        except OSError:
            pass
        finally:
            for other in writers:
                with suppress(OSError):
                    other.close()

    def _is_due(self, command: bytes) -> bool:
        if APPEND not in command:
            return False
        self._appends += 1
        return self._appends % EVERY == 0 and self.cut < self._wanted

    def _tell(self) -> None:
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"port": self.port, "cuts": self.cut}))
        partial.replace(self._state)


if __name__ == "__main__":
    parent = os.environ.get("TRUSTBATCH_PARENT_PID")
    guard(int(parent) if parent else None)
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.proxy", description=__doc__)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--cuts", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(Proxy(arguments.to, arguments.cuts, arguments.state).serve())
