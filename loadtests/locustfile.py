"""A phone app's sessions for Locust: `make load URL=…`, or `locust -f loadtests/locustfile.py --host URL`.

Answers are told apart by `Cache-Status`, so the table at the end shows the hit ratio beside latency. SESSION names
another file of paths than loadtests/session.txt.
"""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, events, task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtests.cache_status import Tally, kind
from loadtests.session import read

PHONE = {
    "User-Agent": "ShopApp/7.2.1 (iPhone; iOS 19.1; Scale/3.00)",
    "Accept": "application/json",
    "Accept-Language": "en-GB,en;q=0.9",
    "Accept-Encoding": "gzip",
    "X-App-Version": "7.2.1",
    "X-Platform": "ios",
}


class Phone(FastHttpUser):
    """Somebody with the app in hand: a request, a look at the screen, the next."""

    wait_time = between(0.05, 0.5)
    session = read(Path(os.environ.get("SESSION") or Path(__file__).with_name("session.txt")))

    @task
    def look(self) -> None:
        name, path = self.session.pick()
        self.client.get(path, name=name, headers={**PHONE, "X-Request-ID": str(uuid.uuid4())})


@events.init.add_listener
def _count(environment: Any, **_: Any) -> None:
    tally = Tally()

    def on_request(name: str, response_time: float, response: Any, exception: Exception | None, **_: Any) -> None:
        if exception is not None:
            tally.errors += 1
        else:
            tally.add(name, kind(response.headers.get("Cache-Status")), response_time)

    def on_quitting(**_: Any) -> None:
        print("\n".join(("", *tally.lines())))

    environment.events.request.add_listener(on_request)
    environment.events.quitting.add_listener(on_quitting)
