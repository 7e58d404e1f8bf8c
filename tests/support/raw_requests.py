"""Requests as they are sent: those that the connection guard refuses, with their status and reason, and others."""

from __future__ import annotations

HOST = b"Host: a.test\r\n"


GET = b"GET / HTTP/1.1\r\n"


POST = b"POST / HTTP/1.1\r\n" + HOST


REFUSED = {
    # Host (RFC 9112 §3.2)
    "no host": (GET + b"\r\n", 400, "host"),
    "two hosts": (GET + HOST + b"Host: b.test\r\n\r\n", 400, "doubled"),
    "the same host twice": (GET + HOST + HOST + b"\r\n", 400, "doubled"),
    "empty host": (GET + b"Host:\r\n\r\n", 400, "host"),
    "host with a path": (GET + b"Host: a.test/x\r\n\r\n", 400, "host"),
    "host with a user": (GET + b"Host: u@a.test\r\n\r\n", 400, "host"),
    "host with a space": (GET + b"Host: a test\r\n\r\n", 400, "host"),
    "host with a comma": (GET + b"Host: a.test, b.test\r\n\r\n", 400, "host"),
    "host with a bad port": (GET + b"Host: a.test:99999\r\n\r\n", 400, "host"),
    "two hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n", 400, "doubled"),
    # lengths and codings (RFC 9112 §6)
    "length and coding": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "length_and_coding"),
    "coding and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400, "length_and_coding"),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "doubled"),
    "the same length twice": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "doubled"),
    "a list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400, "length"),
    "a signed length": (POST + b"Content-Length: +3\r\n\r\nabc", 400, "length"),
    "a negative length": (POST + b"Content-Length: -3\r\n\r\nabc", 400, "length"),
    "a length with a space": (POST + b"Content-Length: 3 3\r\n\r\nabc", 400, "length"),
    "a hexadecimal length": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400, "length"),
    "a length with an underscore": (POST + b"Content-Length: 1_0\r\n\r\nabc", 400, "length"),
    "a fractional length": (POST + b"Content-Length: 3.0\r\n\r\nabc", 400, "length"),
    "an empty length": (POST + b"Content-Length:\r\n\r\nabc", 400, "length"),
    "a length in other digits": (POST + "Content-Length: ٣\r\n\r\nabc".encode(), 400, "length"),
    "a length with a control": (POST + b"Content-Length: \x0b3\r\n\r\nabc", 400, "header_value"),
    "a length beyond any number": (POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nabc", 413, "large_body"),
    "a body that is too large": (POST + b"Content-Length: 1073741824\r\n\r\n", 413, "large_body"),
    "too large, with Expect": (
        POST + b"Content-Length: 1073741824\r\nExpect: 100-continue\r\n\r\n", 413, "large_body"
    ),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "coding"),
    "chunked, gzip": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 400, "coding"),
    "chunked, chunked": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400, "coding"),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "doubled"),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400, "coding"),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 400, "coding"),
    "chunked in quotes": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n', 400, "coding"),
    "chunked with a control": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400, "header_value"),
    "empty coding": (POST + b"Transfer-Encoding:\r\n\r\n", 400, "coding"),
    "coding with a space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400, "header_name"),
    "coding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "coding"
    ),
    "no length in HTTP/1.0": (b"POST / HTTP/1.0\r\n" + HOST + b"\r\n", 411, "no_length"),
    "a signed chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", 400, "chunk"),
    "a chunk size with 0x": (POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400, "chunk"),
    "a chunk size with a space": (POST + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", 400, "chunk"),
    "an overflowing chunk size": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n", 400, "chunk"
    ),
    "a chunk longer than it says": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400, "chunk"
    ),
    "a chunk that ends in a bare line feed": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", 400, "chunk"
    ),
    "an endless chunk extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"a" * 5000 + b"\r\nabc\r\n", 400, "chunk"
    ),
    "chunks that are too large together": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n40000000\r\n", 413, "large_body"
    ),
    "a folded trailer": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n", 400, "folded"
    ),
    # lines (RFC 9112 §2.2, §5)
    "a folded header": (GET + HOST + b"A: b\r\n c: d\r\n\r\n", 400, "folded"),
    "a first header that is folded": (GET + b" Host: a.test\r\n\r\n", 400, "folded"),
    "a bare line feed": (b"GET / HTTP/1.1\nHost: a.test\n\n", 400, "bare_break"),
    "one bare line feed": (GET + HOST + b"A: b\nC: d\r\n\r\n", 400, "bare_break"),
    "a bare carriage return": (GET + HOST + b"A: b\rC: d\r\n\r\n", 400, "bare_break"),
    "NUL in a value": (GET + HOST + b"A: b\x00c\r\n\r\n", 400, "bare_break"),
    "NUL in the target": (b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "a control in a value": (GET + HOST + b"A: b\x01c\r\n\r\n", 400, "header_value"),
    "a space before the colon": (GET + b"Host : a.test\r\n\r\n", 400, "header_name"),
    "no colon": (GET + HOST + b"abc\r\n\r\n", 400, "header_name"),
    "no name": (GET + HOST + b": abc\r\n\r\n", 400, "header_name"),
    "a name with a bracket": (GET + HOST + b"A(b): c\r\n\r\n", 400, "header_name"),
    "a name beyond ASCII": (GET + HOST + "Ä: c\r\n\r\n".encode(), 400, "header_name"),
    # the request line (RFC 9112 §3)
    "HTTP/0.9": (b"GET /\r\n", 400, "version"),
    "HTTP/0.9 by its name": (b"GET / HTTP/0.9\r\n\r\n", 505, "version"),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505, "version"),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505, "version"),
    "the HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\n" + HOST + b"\r\n", 400, "version"),
    "HTTP/01.1": (b"GET / HTTP/01.1\r\n" + HOST + b"\r\n", 400, "version"),
    "http/1.1": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400, "version"),
    "ICY/1.1": (b"GET / ICY/1.1\r\n" + HOST + b"\r\n", 400, "version"),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "line"),
    "a tab": (b"GET\t/\tHTTP/1.1\r\n" + HOST + b"\r\n", 400, "line"),
    "a space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "line"),
    "a space at the end": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400, "line"),
    "no target": (b"GET HTTP/1.1\r\n" + HOST + b"\r\n", 400, "line"),
    "a method that is none": (b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "line"),
    "an unknown method": (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 501, "method"),
    "a method in lower case": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 501, "method"),
    "CONNECT": (b"CONNECT a.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method"),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method"),
    "an encoded NUL": (b"GET /a%00b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "an encoded NUL in the query": (b"GET /?a=%00 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "a target beyond ASCII": ("GET /ä HTTP/1.1\r\n".encode() + HOST + b"\r\n", 400, "target"),
    "a target without a slash": (b"GET a HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "the authority form": (b"GET a.test:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "the asterisk form": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "the absolute form of another host": (b"GET http://b.test/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "the absolute form of another scheme": (b"GET ftp://a.test/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "the absolute form without a host": (b"GET http:///a HTTP/1.1\r\n" + HOST + b"\r\n", 400, "parser"),
    "a fragment": (b"GET /#a HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "an encoded slash": (b"GET /a%2fb HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    "out of the root": (b"GET /../a HTTP/1.1\r\n" + HOST + b"\r\n", 400, "target"),
    # fields that matter
    "another expectation": (POST + b"Content-Length: 0\r\nExpect: 200-ok\r\n\r\n", 417, "expect"),
    "two Authorization": (GET + HOST + b"Authorization: a\r\nAuthorization: b\r\n\r\n", 400, "doubled"),
    "two Range": (GET + HOST + b"Range: bytes=0-1\r\nRange: bytes=2-3\r\n\r\n", 400, "doubled"),
    "Connection names Host": (GET + HOST + b"Connection: keep-alive, host\r\n\r\n", 400, "connection"),
    "Connection names Cookie": (GET + HOST + b"Connection: Cookie\r\n\r\n", 400, "connection"),
    # sizes
    "a long line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "long_line"),
    "a line without an end": (b"GET /" + b"a" * 9000, 414, "long_line"),
    "a large head": (GET + HOST + b"A: " + b"b" * 33_000 + b"\r\n\r\n", 431, "large_head"),
    "a head without an end": (GET + HOST + b"A: " + b"b" * 33_000, 431, "large_head"),
    "8 MiB of headers": (GET + HOST + b"A: b\r\n" * 1_400_000 + b"\r\n", 431, "large_head"),
    "many headers": (GET + HOST + b"A: b\r\n" * 101 + b"\r\n", 431, "many_headers"),
    "binary": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "line"),
}  # fmt: skip


ACCEPTED = {
    "a plain request": GET + HOST + b"\r\n",
    "an empty line before": b"\r\n" + GET + HOST + b"\r\n",
    "the absolute form": b"GET http://a.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a port": GET + b"Host: a.test:8080\r\n\r\n",
    "an IPv6 host": GET + b"Host: [::1]:8000\r\n\r\n",
    "no host in HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "spaces around a value": GET + b"Host: \t a.test \r\n\r\n",
    "an empty value": GET + HOST + b"A:\r\n\r\n",
    "a value beyond ASCII": GET + HOST + "A: ä\r\n\r\n".encode(),
    "lists that stand twice": GET + HOST + b"Accept: a/b\r\nAccept: c/d\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
    "a hundred headers": GET + HOST + b"A: b\r\n" * 99 + b"\r\n",
    "a body": POST + b"Content-Length: 3\r\n\r\nabc",
    "chunks with an extension and a trailer": (
        POST + b"Transfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n002\r\nde\r\n0\r\nT: v\r\n\r\n"
    ),
    "an expectation that is met": POST + b"Content-Length: 0\r\nExpect: 100-Continue\r\n\r\n",
    "no body on POST": POST + b"\r\n",
    "an upgrade that is not spoken": GET + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "an upgrade to HTTP/2": GET + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
}
