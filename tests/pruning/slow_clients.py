"""Good, slow and impatient clients on one server of this machine's loopback: who is answered, and who is disconnected.

    python tests/pruning/slow_clients.py                          # 200 clients, 100 slow ones, 50 leave
    python tests/pruning/slow_clients.py --clients 40 --slow 20 --leave 10 --rounds 1

The test suite runs it with small numbers. It ends after four minutes at most, whatever the server does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HOST = "127.0.0.1"
TEXT = "The committee met on Tuesday in Geneva and agreed that the old bridge should not be repaired. "
HEAD = b"POST /compress_prompt HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
# what a slow client sends at once, what it then sends again and again, and how often (seconds)
SLOW: dict[str, tuple[bytes, bytes, float]] = {
    "sends nothing": (b"", b"", 1.0),
    "stops in the headers": (HEAD + b"X-", b"", 1.0),
    "drips headers": (HEAD, b"X-A: b\r\n", 0.2),
    "stops in the body": (HEAD + b"Content-Length: 100\r\n\r\n{", b"", 1.0),
    "drips a body": (HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.2),
    "drips chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.2),
    "reads nothing": (b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000, b"", 1.0),
}


def request(i: int) -> bytes:
    """The bytes of one good request."""
    body = json.dumps({"context": [TEXT * (5 + i % 7)], "rate": 0.3 + 0.1 * (i % 5)}).encode()
    return HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def good(port: int, i: int) -> int:
    """The status of one request; 0 if there is no answer."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(request(i))
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
    except (OSError, asyncio.TimeoutError):
        return 0
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


async def leaves(port: int, i: int) -> None:
    """Sends a request and is gone before the answer."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(request(i))
        await asyncio.sleep(0.01 * (i % 5))
        writer.transport.abort()


async def slow(port: int, kind: str, seconds: float) -> float | None:
    """The seconds after which the server disconnected a slow client; None if it did not."""
    first, again, pause = SLOW[kind]
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    began = time.monotonic()
    try:
        await loop.sock_connect(client, (HOST, port))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(client, first), 1)
        while time.monotonic() - began < seconds:
            await asyncio.sleep(pause)
            if kind == "reads nothing":
                # reading would make it a good client: writing fails once the server has reset the connection
                with contextlib.suppress(BlockingIOError):
                    client.send(b"\r\n")
                continue
            with contextlib.suppress(BlockingIOError):
                if client.recv(4096) == b"":
                    return time.monotonic() - began
            await loop.sock_sendall(client, again)
    except OSError:
        return time.monotonic() - began
    finally:
        client.close()
    return None


async def rush(port: int, clients: int, slow_ones: int, leave: int, seconds: float) -> dict[str, object]:
    """All of them at once; what became of them."""
    kinds = [list(SLOW)[i % len(SLOW)] for i in range(slow_ones)]
    slow_tasks = [asyncio.create_task(slow(port, kind, seconds)) for kind in kinds]
    await asyncio.sleep(0.2)
    leaving = [asyncio.create_task(leaves(port, i)) for i in range(leave)]
    statuses = await asyncio.gather(*(good(port, i) for i in range(clients)))
    await asyncio.gather(*leaving)
    closed = await asyncio.gather(*slow_tasks)
    return {
        "statuses": dict(Counter(statuses)),
        "unanswered": statuses.count(0),
        "slow": slow_ones,
        "closed": sum(after is not None for after in closed),
        "closed after at most (s)": round(max((after for after in closed if after is not None), default=0.0), 1),
        "still open": sorted({kind for kind, after in zip(kinds, closed, strict=True) if after is None}),
    }


def resident(pid: int) -> float:
    """Memory of a process in MiB, on Linux."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--leave", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    options = ["--scorer", "baseline", "--ner", "none", "--port", str(port), "--queue", str(args.clients + args.leave)]
    command = [sys.executable, "-m", "distill.cli", "serve", *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if asyncio.run(good(port, 0)) == 200:
                break
            time.sleep(0.1)
        asyncio.run(rush(port, 20, 0, 0, 1))  # the first requests load modules
        before = resident(server.pid)
        print(f"memory before: {before:.0f} MiB")
        fine = True
        for _ in range(min(args.rounds, 3)):
            found = asyncio.run(rush(port, args.clients, args.slow, args.leave, 50.0))
            time.sleep(1)
            after = resident(server.pid)
            print(found, f"memory after: {after:.0f} MiB")
            fine &= not found["unanswered"] and found["closed"] == found["slow"] and after < before + 100
    finally:
        server.terminate()
        server.wait(15)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
