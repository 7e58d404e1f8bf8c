"""The draft of a configuration: names of upstreams, and a file that the gateway reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.config.loader import load
from gateway.importers.draft import (
    LONGEST_NAME,
    Draft,
    ImportFailed,
    RouteDraft,
    as_name,
    as_yaml_text,
    draft_of,
    environment_example,
    unique,
)


def written(draft: Draft, tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(as_yaml_text(draft))
    return path


def test_one_api_is_passed_on_whole(tmp_path: Path) -> None:
    config = load(written(draft_of(["http://localhost:3000/"]), tmp_path), environ={}, dotenv=None).config
    assert {name: each.url for name, each in config.upstreams.items()} == {"api": "http://localhost:3000"}
    route = config.routes["api"]
    assert (route.path, route.target_text, route.methods, route.ttl) == (
        "/{path:path}",
        "/{path:path}",
        "any",
        "origin",
    )


def test_several_apis_are_told_apart_by_the_first_segment(tmp_path: Path) -> None:
    draft = draft_of(["shop_api=http://localhost:3000", "https://reviews.example.com/v2"])
    config = load(written(draft, tmp_path), environ={}, dotenv=None).config
    assert {name: (each.path, each.upstream_path) for name, each in config.routes.items()} == {
        "shop_api": ("/shop-api/{path:path}", "/{path}"),
        "reviews": ("/reviews/{path:path}", "/{path}"),
    }


def test_what_comes_next_is_valid_once_it_is_uncommented(tmp_path: Path) -> None:
    path = written(draft_of(["http://localhost:3000", "http://localhost:3001"]), tmp_path)
    examples = [line for line in path.read_text().splitlines() if line.startswith("  # ")]
    code = [
        line.replace("  # ", "  ", 1)
        for line in examples
        if not line.startswith(("  # A route", "  # at once", "  # One", "  # says", "  # Every"))
    ]
    path.write_text(path.read_text() + "\n".join(code) + "\n")
    config = load(path, environ={}, dotenv=None).config
    assert set(config.routes) == {"api", "api_2", "product", "screen"}
    assert set(config.routes["screen"].parts) == {"product", "reviews"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://catalog.example.com", "catalog"),
        ("https://api.example.com", "example"),
        ("localhost:3000", "api"),
        ("http://10.0.0.7:80", "api"),
        ("Price-List=http://localhost:1", "price_list"),
    ],
)
def test_an_upstream_is_named_by_its_host_or_as_given(url: str, name: str) -> None:
    assert [each.name for each in draft_of([url]).upstreams] == [name]


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://[::1"])
def test_what_is_no_url_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ImportFailed, match="expected http://localhost:3000"):
        draft_of([text])


def test_names_are_words_joined_by_underscores_and_each_is_unique() -> None:
    assert [as_name(text, "route") for text in ("getPetById", "HTTPStatus list", "7", "/pets/")] == [
        *("get_pet_by_id", "http_status_list", "route_7", "pets"),
    ]
    assert unique("a", ["a", "a_2"]) == "a_3"
    assert len(as_name("a" * 5000, "route")) == LONGEST_NAME


def test_no_text_of_others_leaves_its_comment(tmp_path: Path) -> None:
    text = "x\ntrusted_proxies: [0.0.0.0/0]\r\u2028\x85port: 1 \x1b[31m\x00#"
    draft = draft_of(["http://localhost:3000"])
    [route] = draft.routes
    draft.routes = [RouteDraft(route.name, route.settings, text, {"ttl": text})]
    draft.notes = [text]
    before = load(written(draft_of(["http://localhost:3000"]), tmp_path), environ={}, dotenv=None).config
    assert load(written(draft, tmp_path), environ={}, dotenv=None).config == before


def test_the_example_of_variables_sets_nothing_by_itself() -> None:
    text = environment_example(draft_of(["http://localhost:3000"]))
    assert "GATEWAY_UPSTREAMS__API__URL=http://localhost:3000" in text
    assert all(line.startswith("#") or not line for line in text.splitlines())
    assert yaml.safe_load(text) is None
