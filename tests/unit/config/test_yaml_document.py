"""YAML of the configuration: what is read, with its line, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import pytest

from gateway.config.loader import load
from gateway.config.yaml_document import MAX_FILE, MAX_NODES
from gateway.errors import ConfigError
from tests.support.settings import SHOP, Load, Refused, places, texts


def test_a_byte_order_mark_is_left_out(read: Load) -> None:
    assert read(b"\xef\xbb\xbfmemory: 1MiB\n").config.memory == 1024**2


def test_dates_and_signs_are_text(read: Load) -> None:
    loaded = read(SHOP + "    summary: 2026-11-25\n    description: =\n")
    route = loaded.config.routes["price_list"]
    assert (route.summary, route.description) == ("2026-11-25", "=")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: does not exist; create it"):
        load(tmp_path / "none.yaml", environ={}, dotenv=None)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; give the path of a file in it"):
        load(tmp_path, environ={}, dotenv=None)


class Unreadable(type(Path())):  # type: ignore[misc]
    """A path that may not be read, to root neither."""

    def open(self, *args: Any, **kwargs: Any) -> IO[Any]:
        raise PermissionError(13, "Permission denied")


def test_a_file_that_may_not_be_read_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="isn't readable by the gateway's user"):
        load(Unreadable("gateway.yaml"), environ={}, dotenv=None)


def test_another_error_of_the_system_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be read: Not a directory"):
        load(tmp_path / "file" / "gateway.yaml", environ={}, dotenv=None)


def test_a_file_of_more_than_a_mebibyte_is_refused(refused: Refused) -> None:
    assert texts(refused("#" * (MAX_FILE + 1))) == ["gateway.yaml: is larger than 1024 KiB"]


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(refused: Refused) -> None:
    assert texts(refused(b"host: a\nredis_prefix: \xff\n")) == [
        "gateway.yaml line 2: is not UTF-8; save the file as UTF-8"
    ]


def test_a_tab_is_refused_with_line_column_and_advice(refused: Refused) -> None:
    [problem] = refused("cors:\n\tmax_age: 1h\n")
    assert problem.source == "gateway.yaml line 2 column 1"
    assert problem.message.endswith("YAML is indented with spaces, not tabs")


def test_a_syntax_error_tells_line_column_and_what_is_wrong(refused: Refused) -> None:
    assert texts(refused("host: a\ninclude: [a:b\n")) == [
        "gateway.yaml line 3 column 1: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"
    ]


def test_an_unknown_alias_is_refused(refused: Refused) -> None:
    assert texts(refused("host: *a")) == ["gateway.yaml line 1 column 7: found undefined alias 'a'"]


def test_a_control_character_is_refused_with_line_and_column(refused: Refused) -> None:
    [problem] = texts(refused("host: a\nport: \x00"))
    assert problem == "gateway.yaml line 2 column 7: contains a character that YAML doesn't allow"


def test_an_escape_beyond_unicode_is_refused(refused: Refused) -> None:
    [problem] = refused('host: "\\U99999999"')
    assert problem.message.startswith("has an invalid escape")


def test_a_second_document_is_refused(refused: Refused) -> None:
    assert texts(refused("host: a\n---\nhost: b\n")) == [
        "gateway.yaml line 2 column 1: has a second document; expected one, without ---"
    ]


@pytest.mark.parametrize("text", ["- a", "text", "5"])
def test_the_top_must_be_a_mapping(refused: Refused, text: str) -> None:
    assert texts(refused(text)) == ["gateway.yaml: must be a mapping, such as `memory: 256MiB`, at the top"]


def test_a_second_key_is_refused_with_both_lines(refused: Refused) -> None:
    assert texts(refused("host: a\nport: 1\nhost: b\n")) == [
        "gateway.yaml line 3: the key host is a duplicate; the first is on line 1"
    ]


@pytest.mark.parametrize("key", ["404", "on", "null", "2026-11-25"])
def test_a_key_that_is_not_text_is_refused(refused: Refused, key: str) -> None:
    [problem] = refused(f"routes:\n  {key}: {{path: /a, upstream: b}}\n")
    assert str(problem) == f"gateway.yaml line 2: the key {key} isn't text; put it in quotes"


def test_a_key_that_is_a_list_is_refused(refused: Refused) -> None:
    assert texts(refused("? [a]\n: b\n")) == ["gateway.yaml line 1: a key isn't text; put it in quotes"]


@pytest.mark.parametrize("value", ["!!python/object:os.system {}", "!!binary aGk=", "!!set {a}", "!mine a"])
def test_tags_of_other_types_are_refused(refused: Refused, value: str) -> None:
    [problem] = refused(f"host: {value}\n")
    assert problem.key == "host"
    assert problem.message.endswith("isn't a supported tag; remove it")


@pytest.mark.parametrize("value", ["!!int x", "!!bool x", "!!float x", "0b_", "9" * 5000])
def test_a_value_that_is_not_what_its_tag_says_is_told_once(refused: Refused, value: str) -> None:
    [problem] = refused(f"port: {value}\n")
    assert problem.message.endswith("put it in quotes if it is text")


def test_a_wrong_value_met_twice_by_an_alias_is_told_at_both_keys(refused: Refused) -> None:
    assert [problem.key for problem in refused("port: &a !!int x\nmemory: *a\n")] == ["port", "memory"]


def test_an_alias_stands_for_its_value(read: Load) -> None:
    loaded = read("memory: &size 1MiB\nredis_memory: *size\n")
    assert loaded.config.redis_memory == 1024**2
    assert places(loaded, "redis_memory") == ["gateway.yaml line 2"]


def test_a_merge_key_brings_in_what_is_not_written(read: Load) -> None:
    loaded = read(SHOP.replace("product:", "product: &p") + "  other:\n    <<: *p\n    path: /o\n")
    other = loaded.config.routes["other"]
    assert (other.path, other.ttl) == ("/o", timedelta(seconds=30))
    assert places(loaded, "routes", "other", "path") == ["gateway.yaml line 16"]
    assert places(loaded, "routes", "other", "ttl") == ["gateway.yaml line 10"]


def test_what_is_written_wins_over_a_merge_key_below_it(read: Load) -> None:
    loaded = read(SHOP.replace("product:", "product: &p") + "  other:\n    path: /o\n    <<: *p\n")
    assert loaded.config.routes["other"].path == "/o"
    assert places(loaded, "routes", "other", "path") == ["gateway.yaml line 15"]


def test_of_a_list_of_merged_mappings_the_first_wins(read: Load) -> None:
    anchors = "  a: &a {path: /a, upstream: catalog, ttl: 1s}\n  b: &b {path: /b, upstream: catalog, ttl: 2s}\n"
    loaded = read(SHOP + anchors + "  c:\n    <<: [*a, *b]\n    path: /c\n")
    assert loaded.config.routes["c"].ttl == timedelta(seconds=1)


def test_a_merge_key_takes_mappings_only(refused: Refused) -> None:
    assert texts(refused("<<: 5")) == ["gateway.yaml line 1: << takes a mapping or a list of mappings"]


def test_two_merge_keys_are_refused(refused: Refused) -> None:
    assert texts(refused("cors: &a {}\n<<: *a\n<<: *a\n")) == [
        "gateway.yaml line 3: the key << is a duplicate; the first is on line 2"
    ]


def test_aliases_that_explode_are_refused(refused: Refused) -> None:
    text = "l0: &l0 [x]\n"
    text += "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 20))
    [problem] = refused(text)
    assert problem.message == f"has more than {MAX_NODES} values, aliases counted in full"


def test_merge_keys_that_explode_are_refused(refused: Refused) -> None:
    text = "l0: &l0 {a: 1}\n"
    text += "".join(f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}\n" for n in range(1, 20))
    [problem] = refused(text)
    assert problem.message == f"has more than {MAX_NODES} values, aliases counted in full"


def test_a_long_text_repeated_by_aliases_is_refused(refused: Refused) -> None:
    [problem] = refused(f"host: &a {'x' * 500_000}\ninclude: [{'*a,' * 10}]")
    assert problem.message.startswith("has more than")


def test_an_alias_that_contains_itself_is_refused(refused: Refused) -> None:
    assert texts(refused("include: &a [*a]")) == ["gateway.yaml line 1: has an alias that contains itself"]


def test_values_nested_too_deep_are_refused(refused: Refused) -> None:
    assert texts(refused("include: " + "[" * 40 + "]" * 40)) == ["gateway.yaml line 1: is nested more than 32 deep"]


def test_values_nested_deeper_than_python_goes_are_refused(refused: Refused) -> None:
    assert texts(refused("[" * 100_000)) == ["gateway.yaml: is nested too deeply"]


def test_a_dotenv_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load(None, environ={}, dotenv=tmp_path)
