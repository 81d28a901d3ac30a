"""What other processes wrote, taken as far as it is what it should be."""

import json

import pytest

from shared.untrusted import json_object

HALF = '{"state": "\ud800"}'
NOT_UTF_8 = {
    "half a surrogate pair": HALF.encode(errors="surrogatepass"),
    "half a surrogate pair, escaped": json.dumps({"state": "\ud800"}).encode(),
    "half a surrogate pair, escaped in UTF-16": json.dumps({"state": "\ud800"}).encode("utf-16"),
    "half a surrogate pair in UTF-32": HALF.encode("utf-32", errors="surrogatepass"),
    "UTF-16": b"\xff\xfe" + '{"state": "idle"}'.encode("utf-16-le"),
    "a byte order mark": '{"state": "idle"}'.encode("utf-8-sig"),
    "no text": b'{"state": "\xff"}',
}


@pytest.mark.parametrize("raw", NOT_UTF_8.values(), ids=NOT_UTF_8.keys())
def test_only_text_in_utf_8_that_can_be_sent_on_is_read(raw: bytes) -> None:
    assert json_object(raw) == {}


@pytest.mark.parametrize("text", ["größer", "\U0001f600", "\u2028"])
def test_any_text_in_utf_8_is_read(text: str) -> None:
    for ascii_only in (False, True):
        assert json_object(json.dumps({"state": text}, ensure_ascii=ascii_only).encode()) == {"state": text}
