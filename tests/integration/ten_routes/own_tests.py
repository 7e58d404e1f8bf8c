"""The tests of the app of ten routes: what it does, with a cache or without. They know nothing of the gateway."""

from collections.abc import Iterator

import main
import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(main.app) as client:
        yield client


def test_a_token_names_its_reader(client: TestClient) -> None:
    token = client.post("/token", params={"name": "Ann"}).json()["token"]
    assert client.get("/me", headers={"Authorization": f"Bearer {token}"}).json() == {"name": "Ann"}


@pytest.mark.parametrize("given", ["Bearer no", "Bearer e30.eyJzdWIiOiJBbm4ifQ==.AAAA"])
def test_another_token_is_refused(client: TestClient, given: str) -> None:
    assert client.get("/me", headers={"Authorization": given}).status_code == 401


def test_without_a_token_nobody_is_named(client: TestClient) -> None:
    assert client.get("/me").json() == {"detail": "Not authenticated"}


def test_a_book_has_its_title_and_shelf(client: TestClient) -> None:
    for _ in range(2):
        response = client.get("/books/1")
        assert (response.json(), response.headers["x-shelf"]) == ({"id": 1, "title": "Emma"}, "A")


def test_errors_have_the_bodies_of_the_app(client: TestClient) -> None:
    for _ in range(2):
        assert (client.get("/books/9").status_code, client.get("/books/9").json()) == (404, {"detail": "no such book"})
        assert (client.get("/books/3").status_code, client.get("/books/3").json()) == (410, {"reason": "out of print"})
        invalid = client.get("/books/one")
        assert (invalid.status_code, invalid.json()["detail"][0]["loc"]) == (422, ["path", "id"])
    assert (client.get("/nowhere").status_code, client.get("/nowhere").json()) == (404, {"detail": "Not Found"})
    assert (client.put("/books/1").status_code, client.put("/books/1").json()) == (
        405,
        {"detail": "Method Not Allowed"},
    )


def test_a_dependency_can_be_replaced(client: TestClient) -> None:
    assert client.get("/prices/1").json() == {"id": 1, "currency": "GBP"}
    main.app.dependency_overrides[main.currency] = lambda: "EUR"
    assert client.get("/prices/1").json() == {"id": 1, "currency": "EUR"}
    main.app.dependency_overrides = {}
    assert client.get("/prices/1").json() == {"id": 1, "currency": "GBP"}


def test_a_session_is_one_clients(client: TestClient) -> None:
    assert client.post("/basket/1").json() == [1]
    assert client.post("/basket/2").json() == [1, 2]
    assert client.get("/basket").json() == [1, 2]
    client.cookies.clear()
    assert client.get("/basket").json() == []


def test_a_page_is_made_from_a_template(client: TestClient) -> None:
    page = client.get("/page/1")
    assert (page.headers["content-type"], "<title>Emma</title>" in page.text) == ("text/html; charset=utf-8", True)
    assert "http://testserver/static/books.css" in page.text


def test_a_file_is_served(client: TestClient) -> None:
    assert client.get("/static/books.css").text == "body { color: black }\n"


def test_what_the_lifespan_yields_is_there(client: TestClient) -> None:
    assert client.get("/greeting").json() == "Good day"


def test_a_websocket_talks(client: TestClient) -> None:
    with client.websocket_connect("/talk") as socket:
        socket.send_text("emma")
        assert socket.receive_text() == "EMMA"


def test_a_sub_application_knows_its_place(client: TestClient) -> None:
    assert client.get("/reviews/of/1").json() == {"self": "http://testserver/reviews/of/1"}


def test_another_origin_may_read(client: TestClient) -> None:
    response = client.get("/books/1", headers={"Origin": "https://books.example"})
    assert response.headers["access-control-allow-origin"] == "https://books.example"


def test_behind_a_prefix_links_have_it() -> None:
    with TestClient(main.app, root_path="/shop") as client:
        assert client.get("/shop/reviews/of/1").json() == {"self": "http://testserver/shop/reviews/of/1"}
