"""The part of .ci/image that runs in its own mount and network namespaces. It runs the binary in a
read-only root with only the content of the image, as the image's user, measures it, and checks what
operators rely on.

It also runs simulated backends (from the same binary), a DNS server, and a receiver of usage records
over HTTPS with a certificate of a CA created here.
"""

import asyncio
import ctypes
import fcntl
import gzip
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tarfile
import threading
import time

ROOT, WORK, DOCKERFILE = map(pathlib.Path, sys.argv[1:4])
RUN, CONF, DATA = WORK / "run", WORK / "conf", WORK / "data"
MB = 1_000_000
AIMS = {"size": 20 * MB, "start": 1.0, "memory": 100 * MB}
STARTS, STREAMS, ROUNDS, SHORT, CONNECTIONS = 11, 200, 3, 5000, 64

CONFIGURATION = """
listen: ":8000"
server:
  metrics_listen: ":9100"
backends:
  - {name: streams, url: "http://streams.test:9000", models: [slow]}
  - {name: short, url: "http://short.test:9001", models: [fast]}
usage:
  reporters:
    - type: builtin
    - {name: billing, type: webhook, webhook: {url: "https://billing.test:8443/usage", batch_size: 100}}
auth:
  pipeline: [{type: file}]
api_keys:
  - {key: sk-image-0001, user_id: user_001}
log: {access: false}
"""


def main():
    """Runs all checks and measurements in order. The first failure ends it."""
    settings = Settings(DOCKERFILE.read_text())
    sizes = measure_size()
    holds_only_the_binary()
    prepare()
    names_of(b"\x7f\x00\x00\x01")
    receiver = Receiver()
    sim = ["sim", "--listen", "127.0.0.1:9000", "--model", "slow", "--tokens", "50"]
    fast = ["sim", "--listen", "127.0.0.1:9001", "--model", "fast", "--tokens", "1", "--first-token", "0ms"]
    with Process(settings, sim) as streams, Process(settings, fast) as short:
        wait_for(9000)
        wait_for(9001)
        missing_configuration_is_reported(settings)
        configure(CONFIGURATION)
        assert settings.health().returncode == 1, "`health` succeeds although nothing runs"
        starts = sorted(start_once(settings) for _ in range(STARTS))
        trusts_only_the_image(settings, receiver)
        idle, peak = memory(settings, receiver)
        streams.stop()
        short.stop()
    report(sizes, statistics.median(starts), idle, peak)


class Settings:
    """The settings of the last stage of the Dockerfile."""

    def __init__(self, text):
        final = text[text.rindex("\nFROM ") :].replace("\\\n", " ")
        self.env = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*)$", final, re.MULTILINE)[1]))
        self.uid, self.gid = map(int, re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE).groups())
        words = lambda name: json.loads(re.search(rf"{name} +(\[.*\])$", final, re.MULTILINE)[1])
        self.entrypoint, self.command = words("^ENTRYPOINT"), words("^CMD")
        self.check = words("^HEALTHCHECK.* CMD")
        self.signal = getattr(signal, re.search(r"^STOPSIGNAL (\w+)$", final, re.MULTILINE)[1])

    def enter(self):
        """Moves the calling process into the container before it executes the program."""
        os.chroot(RUN)
        os.chdir("/")
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS

    def health(self, *more):
        """Runs the image's health check."""
        return self.run([*self.check, *more])

    def run(self, command):
        """Runs a program of the image and waits for its end."""
        return subprocess.run(command, preexec_fn=self.enter, env=self.env, capture_output=True, text=True)


LIBC = ctypes.CDLL(None)


class Process:
    """The program of the image. It is killed at the end of the block."""

    def __init__(self, settings, command=None, env=None):
        self.log = open(WORK / "log", "ab")
        self.signal = settings.signal
        arguments = settings.entrypoint + (command or settings.command)
        env = {**settings.env, **(env or {})}
        self.child = subprocess.Popen(
            arguments, preexec_fn=settings.enter, env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.log.close()

    def status(self, key):
        """A size from /proc, in bytes."""
        text = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024

    def stop(self):
        """Stops it as a container engine does. It must exit with 0."""
        self.child.send_signal(self.signal)
        code = self.child.wait(timeout=20)
        assert code == 0, f"{self.signal.name} ended it with {code}"


def measure_size():
    """Returns the bytes of all files, of the binary, and of the compressed layer."""
    files = [f for f in ROOT.rglob("*") if f.is_file() and not f.is_symlink()]
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(ROOT, "/")
    for file in sorted(files):
        print(f"{file.stat().st_size:>10}  /{file.relative_to(ROOT)}", file=sys.stderr)
    total = sum(f.stat().st_size for f in files)
    return total, (ROOT / "llmproxy").stat().st_size, len(gzip.compress(layer.getvalue(), 6))


def holds_only_the_binary():
    """Checks that the only program is the static binary, and that there are CA certificates."""
    programs = [f for f in ROOT.rglob("*") if f.is_file() and os.access(f, os.X_OK) and f.stat().st_mode & 0o111]
    # `docker export` adds empty files for the mounts of the engine.
    programs = [f for f in programs if f.stat().st_size]
    assert programs == [ROOT / "llmproxy"], programs
    told = subprocess.run(["readelf", "-lWd", ROOT / "llmproxy"], check=True, capture_output=True, text=True).stdout
    assert "INTERP" not in told and "NEEDED" not in told, "the binary is not static"
    roots = (ROOT / "etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE")
    assert roots > 50, f"{roots} certificates"


def prepare():
    """Mounts the root as a container engine does, and sets up a network with only loopback."""
    shutil.copytree(ROOT, RUN, symlinks=True)
    for folder in (CONF, DATA):
        folder.mkdir()
    os.chown(DATA, 65532, 65532)
    authority(CONF)
    (RUN / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    (RUN / "etc/hosts").write_text("127.0.0.1 localhost\n")
    # As on a host with NSS modules, which a static program must not load.
    (RUN / "etc/nsswitch.conf").write_text("hosts: resolve [!UNAVAIL=return] mdns4_minimal\n")
    for work, to in ((RUN, RUN), (CONF, RUN / "etc/llmproxy"), (DATA, RUN / "var/lib/llmproxy")):
        subprocess.run(["mount", "--bind", work, to], check=True)
        if work != DATA:
            subprocess.run(["mount", "-o", "remount,bind,ro,nosuid,nodev", to], check=True)
    # The program's user must be able to traverse the folder.
    WORK.chmod(0o711)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        up = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(s, 0x8914, up)  # SIOCSIFFLAGS


def authority(folder):
    """Creates a CA and a certificate for billing.test."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    own = WORK / "tls"
    own.mkdir()
    (own / "names").write_text("subjectAltName=DNS:billing.test\n")
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test", "-days", "2"],
        ["req", *key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=billing.test"],
        ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        + ["-extfile", "names", "-out", "cert.pem", "-days", "2"],
    ):
        subprocess.run(["openssl", *command], cwd=own, check=True, capture_output=True)
    shutil.copy(own / "ca.pem", folder / "ca.pem")
    (folder / "ca.pem").chmod(0o644)


def configure(text):
    """Writes the configuration, which is read-only in the container."""
    (CONF / "llmproxy.yaml").write_text(text)
    (CONF / "llmproxy.yaml").chmod(0o644)


def names_of(address):
    """Runs a DNS server that returns this A record for every name, and no other records."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def answer():
        while True:
            query, client = server.recvfrom(512)
            end = query.index(b"\0", 12) + 5
            found = query[end - 4 : end - 2] == b"\0\1"  # A
            header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, int(found), 0, 0)
            record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + address
            server.sendto(header + query[12:end] + (record if found else b""), client)

    server.bind(("127.0.0.1", 53))
    threading.Thread(target=answer, daemon=True).start()


class Receiver:
    """Counts the usage records received over HTTPS."""

    def __init__(self):
        receiver, self.records = self, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            """One call of the webhook."""

            protocol_version = "HTTP/1.1"

            def do_POST(self):
                """Counts the records of a batch."""
                receiver.records += len(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                """No log."""

        class Server(http.server.ThreadingHTTPServer):
            """A server that does not report clients that reject its certificate."""

            def handle_error(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(WORK / "tls/cert.pem", WORK / "tls/key.pem")
        server = Server(("127.0.0.1", 8443), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()


def wait_for(port):
    """Waits until a process listens on the port."""
    until(f"something listens on {port}", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)


def until(what, so, seconds=20.0):
    """Waits until a condition holds, and fails after a timeout."""
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() > end:
            sys.stderr.write((WORK / "log").read_text()[-4000:])
            sys.exit(f"image: timed out waiting until {what}")
        time.sleep(0.02)


def missing_configuration_is_reported(settings):
    """Without a configuration file the container exits and names the missing file."""
    told = settings.run(settings.entrypoint + settings.command)
    assert told.returncode == 1 and "/etc/llmproxy/llmproxy.yaml" in told.stderr, told


def post(model, stream=False):
    """The bytes of a request."""
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]})
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer sk-image-0001\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def start_once(settings):
    """Returns the seconds from exec to the first response, and stops the gateway."""
    begin = time.perf_counter()
    with Process(settings) as gateway:
        while not answers():
            assert time.perf_counter() - begin < 20 and gateway.child.poll() is None, (WORK / "log").read_text()[-4000:]
            time.sleep(0.001)
        took = time.perf_counter() - begin
        gateway.stop()
    return took


def answers():
    """Whether a request gets 200."""
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", 8000)) != 0:
            return False
        s.sendall(post("fast"))
        return s.recv(4096).startswith(b"HTTP/1.1 200 ")


def trusts_only_the_image(settings, receiver):
    """Checks that an unknown CA is not trusted, and that the gateway still serves."""
    with Process(settings) as gateway:
        until("it is ready", lambda: settings.health("--ready").returncode == 0)
        assert settings.health().returncode == 0, "`health` fails although it runs"
        assert answers()
        # The receiver was resolved and reached; only its certificate was refused.
        until("the certificate is refused", lambda: "UnknownIssuer" in (WORK / "log").read_text())
        assert receiver.records == 0
        gateway.stop()


def memory(settings, receiver):
    """Returns the resident bytes when idle and at the peak under load. Checks that every request has a record."""
    with Process(settings, env={"SSL_CERT_FILE": "/etc/llmproxy/ca.pem"}) as gateway:
        until("it is ready", lambda: settings.health("--ready").returncode == 0)
        time.sleep(2)
        idle = gateway.status("VmRSS")
        asyncio.run(load())
        peak = gateway.status("VmHWM")
        # Including the records of the starts and the record that was not delivered before.
        wanted = STARTS + 1 + STREAMS * ROUNDS + SHORT
        until(f"{wanted} records are delivered", lambda: receiver.records >= wanted, 60)
        assert receiver.records == wanted, f"{receiver.records} records of {wanted} requests"
        gateway.stop()
    for kept in ("usage", "usage.db"):
        assert (DATA / kept).exists(), f"{kept} is not in the volume"
    return idle, peak


async def load():
    """Runs concurrent streams, then short requests over a few connections."""
    for _ in range(ROUNDS):
        await asyncio.gather(*(client("slow", True, 1) for _ in range(STREAMS)))
    shares = [SHORT // CONNECTIONS + (i < SHORT % CONNECTIONS) for i in range(CONNECTIONS)]
    await asyncio.gather(*(client("fast", False, share) for share in shares))


async def client(model, stream, requests):
    """Sends requests over one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", 8000)
    for _ in range(requests):
        writer.write(post(model, stream))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else await reader.readuntil(b"\r\n0\r\n\r\n")
        assert not stream or b"[DONE]" in body, body
    writer.close()


def report(sizes, start, idle, peak):
    """Prints the README's table, and fails if a target is missed."""
    total, binary, layer = sizes
    mb = lambda bytes_: f"{bytes_ / MB:.1f} MB"
    arch = os.uname().machine
    print(f"| The image, {arch} | measured | aim |\n|---|---|---|")
    print(f"| size | {mb(total)} | under {mb(AIMS['size'])} |")
    print(f"| of that the binary | {mb(binary)} | |")
    print(f"| compressed, as it is pulled | {mb(layer)} | |")
    print(f"| from exec to the first answer (median of {STARTS}) | {start * 1000:.0f} ms | under 1 s |")
    print(f"| resident, idle | {mb(idle)} | |")
    load_ = f"{STREAMS} streams at a time, {SHORT} short requests"
    print(f"| resident at most, under load ({load_}) | {mb(peak)} | under {AIMS['memory'] // MB} MB |")
    missed = [
        name
        for name, value, aim in (("size", total, "size"), ("start", start, "start"), ("memory", peak, "memory"))
        if value >= AIMS[aim]
    ]
    if missed:
        sys.exit(f"image: the aim is missed: {', '.join(missed)}")


main()
