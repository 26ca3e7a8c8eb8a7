"""conmon.record: JSON both ways, the lws form, the schema."""

from __future__ import annotations

import ast
import json
import pickle
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import conmon
from conmon import Attempt, Record, RecordError, Tcp, Tls, Turns
from conmon.record import MAX_JSON_CHARS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs/record.schema.json").read_text())

# design.md's keys, in its order: users' scripts rely on them.
KEYS = """
v id start state role pid tid comm exe cmdline uid unit container container_pid netns host
host_source laddr
lport raddr rport family transport peer dns dns_us dns_disp dns_source dns_age_us dns_match
sockconn_us attempts tls_us tls txn_resp_us txn_source greeting_us turns prot_specific tcp
duration_us error lost_before
""".split()  # noqa: SIM905

# Every field another value, so that a swap shows.
FULL = Record(
    v=1,
    id="5b0c7e12-2311",
    start="2026-11-23T22:50:07.000013Z",
    state="closed",
    role="server",
    pid=101,
    tid=102,
    comm="curl",
    exe="/usr/bin/curl",
    cmdline=("curl", "--", ""),
    uid=103,
    unit="shop.service",
    container="3f4e",
    container_pid=7,
    netns=4026531840,
    host="shop.example",
    host_source="lookup",
    laddr="2001:db8::5",
    lport=40104,
    raddr="2001:db8::1",
    rport=443,
    family="ipv6",
    transport="tcp",
    peer="2001:db8::2",
    dns=("192.0.2.7", "2001:db8::2", "fe80::1%eth0"),
    dns_us=201,
    dns_disp=1,
    dns_source="getaddrinfo",
    dns_age_us=202,
    dns_match="thread",
    sockconn_us=203,
    attempts=(
        Attempt("192.0.2.7", 4431, 301, 0, "refused", "ECONNREFUSED"),
        Attempt("2001:db8::2", 4432, 302, 303, "ok", None),
    ),
    tls_us=204,
    tls=Tls(
        source="openssl",
        version="TLSv1.3",
        cipher="TLS_AES_256_GCM_SHA384",
        sni="www.shop.example",
        alpn=("h2",),
        alpn_chosen=True,
        resumed=False,
        result="ok",
        alert="close_notify",
    ),
    txn_resp_us=205,
    txn_source="records",
    greeting_us=206,
    turns=Turns(count=7, sum_us=207, max_us=208),
    prot_specific={"protocol": "http", "resp": 404, "method": "GET", "version": "1.1"},
    tcp=Tcp(rtt_us=401, rttvar_us=402, retransmits=403, bytes_sent=404, bytes_received=405),
    duration_us=209,
    error="ECONNRESET",
    lost_before=True,
)
MINIMAL = Record()
NO_SUCH_NAME = Record(
    state="failed", host="nope.example", host_source="lookup", dns_us=9, dns_disp=3,
    dns_source="getaddrinfo", error="EAI_NONAME",
)  # fmt: skip
REFUSED = Record(
    state="failed", raddr="127.0.0.1", rport=1, family="ipv4", dns_disp=0,
    attempts=(Attempt("127.0.0.1", 1, 40, 0, "refused", "ECONNREFUSED"),), error="ECONNREFUSED",
)  # fmt: skip
BAD_HANDSHAKE = Record(
    state="failed", peer="127.0.0.1", sockconn_us=0, error="EPROTO",
    tls=Tls(source="wire", alpn=("h2", "http/1.1"), alpn_chosen=False, result="alert",
            alert="handshake_failure"),
)  # fmt: skip
EXAMPLES = pytest.mark.parametrize(
    "record",
    [FULL, MINIMAL, NO_SUCH_NAME, REFUSED, BAD_HANDSHAKE],
    ids=["full", "minimal", "no such name", "refused", "bad handshake"],
)


def schema_errors(data):
    validator = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(data)]


# Building


def test_fields_are_the_keys_of_the_contract_in_order():
    assert list(Record._fields) == KEYS


def test_nothing_is_known_of_a_new_record():
    said = {key: value for key, value in MINIMAL._asdict().items() if value is not None}
    assert said == {
        "v": 1,
        "state": "open",
        "role": "client",
        "transport": "tcp",
        "attempts": (),
        "lost_before": False,
    }


def test_records_are_immutable_hashable_and_pickle():
    with pytest.raises(AttributeError):
        FULL.state = "open"
    with pytest.raises(AttributeError):
        FULL.tls.version = "TLSv1.2"
    assert {FULL, FULL._replace(), MINIMAL} == {FULL, MINIMAL}
    assert hash(FULL) == hash(FULL._replace())
    assert pickle.loads(pickle.dumps(FULL)) == FULL


# Writing


def test_to_dict_holds_every_key_in_order_and_every_value():
    assert FULL.to_dict() == {
        **FULL._asdict(),
        "cmdline": ["curl", "--", ""],
        "dns": ["192.0.2.7", "2001:db8::2", "fe80::1%eth0"],
        "attempts": [
            {
                "raddr": "192.0.2.7",
                "rport": 4431,
                "us": 301,
                "offset_us": 0,
                "result": "refused",
                "errno": "ECONNREFUSED",
            },
            {
                "raddr": "2001:db8::2",
                "rport": 4432,
                "us": 302,
                "offset_us": 303,
                "result": "ok",
                "errno": None,
            },
        ],
        "tls": {
            "source": "openssl",
            "version": "TLSv1.3",
            "cipher": "TLS_AES_256_GCM_SHA384",
            "sni": "www.shop.example",
            "alpn": ["h2"],
            "alpn_chosen": True,
            "resumed": False,
            "result": "ok",
            "alert": "close_notify",
        },
        "turns": {"count": 7, "sum_us": 207, "max_us": 208},
        "tcp": {
            "rtt_us": 401,
            "rttvar_us": 402,
            "retransmits": 403,
            "bytes_sent": 404,
            "bytes_received": 405,
        },
    }
    assert list(FULL.to_dict()) == KEYS


def test_cmdline_is_left_out_where_it_is_not_set():
    assert [key for key in KEYS if key not in MINIMAL.to_dict()] == ["cmdline"]


def test_changing_the_dict_does_not_change_the_record():
    before = FULL.to_json()
    data = FULL.to_dict()
    data["prot_specific"]["resp"] = 1
    data["dns"].clear()
    data["tls"]["alpn"].clear()
    assert FULL.to_json() == before


@EXAMPLES
def test_orjson_and_the_standard_library_write_the_same(record):
    assert json.loads(orjson.dumps(record.to_dict())) == json.loads(record.to_json())
    assert json.loads(record.to_json()) == record.to_dict()


HOSTILE = "".join(map(chr, range(0x21))) + '"\\\x7f\x80\x9b\u2028\u202e\udcff\ud800\U0001f600'


def test_hostile_text_is_escaped_and_comes_back():
    record = Record(
        comm=HOSTILE, host=HOSTILE, prot_specific={"protocol": "http", "method": HOSTILE}
    )
    text = record.to_json()
    assert text.isascii()
    assert text.isprintable()
    assert Record.from_json(text) == record


# Reading


@EXAMPLES
def test_round_trip_is_exact(record):
    assert Record.from_json(record.to_json()) == record
    assert Record.from_json(record.to_json().encode()) == record
    assert Record.from_dict(record.to_dict()) == record


texts = st.none() | st.text(max_size=8)
counts = st.none() | st.integers(0, 2**63 - 1)
ports = st.none() | st.integers(1, 65535)
ids = st.none() | st.integers(0, 2**32 - 1)
flags = st.none() | st.booleans()
text_lists = st.none() | st.lists(st.text(max_size=8), max_size=3).map(tuple)
records = st.builds(
    Record,
    v=st.just(1),
    **dict.fromkeys(["id", "start", "comm", "exe", "unit", "container", "host", "error"], texts),
    **dict.fromkeys(["host_source", "laddr", "raddr", "family", "peer"], texts),
    **dict.fromkeys(["dns_source", "dns_match"], texts),
    **dict.fromkeys(["dns_us", "dns_age_us", "sockconn_us", "tls_us", "txn_resp_us"], counts),
    **dict.fromkeys(["greeting_us", "duration_us"], counts),
    **dict.fromkeys(["pid", "tid", "uid", "container_pid", "netns"], ids),
    state=st.sampled_from(["open", "closed", "failed"]),
    role=st.sampled_from(["client", "server"]),
    cmdline=text_lists,
    lport=ports,
    rport=ports,
    transport=st.text(max_size=8),
    dns=text_lists,
    dns_disp=st.none() | st.integers(0, 3),
    attempts=st.lists(
        st.builds(
            Attempt,
            raddr=texts,
            rport=ports,
            us=counts,
            offset_us=counts,
            result=texts,
            errno=texts,
        ),
        max_size=3,
    ).map(tuple),
    tls=st.none()
    | st.builds(
        Tls,
        **dict.fromkeys(["source", "version", "cipher", "sni", "result", "alert"], texts),
        alpn=text_lists,
        alpn_chosen=flags,
        resumed=flags,
    ),
    turns=st.none() | st.builds(Turns, count=st.integers(0, 9), sum_us=counts, max_us=counts),
    prot_specific=st.none()
    | st.fixed_dictionaries(
        {"protocol": st.text()}, optional={"resp": counts, "method": texts, "version": texts}
    ),
    tcp=st.none() | st.builds(Tcp, **dict.fromkeys(Tcp._fields, counts)),
    lost_before=st.booleans(),
)


@settings(max_examples=60, deadline=None)  # a busy machine is no failure
@given(records)
def test_round_trip_of_any_record(record):
    text = record.to_json()
    assert "\n" not in text
    again = Record.from_json(text)
    assert again == record
    assert again.to_dict() == json.loads(text)


def test_keys_of_a_newer_version_are_ignored_at_every_level():
    data = FULL.to_dict()
    for level in (data, data["tls"], data["tcp"], data["turns"], data["attempts"][0]):
        level["later"] = {"any": [1.5]}
    data["prot_specific"]["later"] = 1
    assert Record.from_dict(data) == FULL


def test_keys_that_an_older_version_lacks_are_not_known():
    assert Record.from_json('{"v":1,"state":"closed"}') == Record(state="closed")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, [7]) for key in KEYS if key not in ("cmdline", "dns", "attempts")),
        *((key, {"a": 1}) for key in ("cmdline", "dns", "attempts", "pid", "host")),
        *((key, None) for key in ("v", "state", "role", "transport", "attempts", "lost_before")),
        ("v", 2),
        ("v", True),
        ("state", "half-open"),
        ("role", "peer"),
        ("pid", "1"),
        ("pid", True),
        ("pid", 1.0),
        ("pid", -1),
        ("uid", 2**32),
        ("lport", 0),
        ("rport", 65536),
        ("dns_disp", 4),
        ("dns_us", -1),
        ("tls_us", 2**63),
        ("host", 1),
        ("lost_before", 0),
        ("dns", "192.0.2.7"),
        ("dns[1]", ["192.0.2.7", None]),
        ("attempts[0]", ["192.0.2.7"]),
        ("attempts[0].rport", [{"rport": "80"}]),
        ("tls.resumed", {"resumed": 1}),
        ("tls.alpn[0]", {"alpn": [2]}),
        ("turns.count", {"sum_us": 1}),
        ("turns.count", {"count": None}),
        ("prot_specific.protocol", {"resp": 200}),
        ("prot_specific.resp", {"protocol": "http", "resp": "200"}),
        ("tcp.rtt_us", {"rtt_us": 0.5}),
    ],
)
def test_a_wrong_value_is_one_sentence_with_the_key(key, value):
    top = key.partition(".")[0].partition("[")[0]
    with pytest.raises(RecordError) as caught:
        Record.from_json(json.dumps({**FULL.to_dict(), top: value}))
    assert f'"{key}"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("key", ["v", "state"])
def test_what_makes_a_record_must_be_there(key):
    data = FULL.to_dict()
    del data[key]
    with pytest.raises(RecordError, match=f'"{key}" is missing'):
        Record.from_dict(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "1",
        '"x"',
        "{",
        '{"v":1,"state":"open"} {}',
        '{"v":1,"state":"open","later":NaN}',
        '{"v":1,"state":"open","later":-Infinity}',
        "\ufeff{}",
        b"\xff",
        b'{"v":1,"state":"open","comm":"\xed\xa0\x80"}',
        "[" * 200_000,
        '{"later":' * 100_000,
        '{"v":1,"state":"open","later":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"v":1,"state":"open","tls":' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}",
        MINIMAL.to_json() + " " * MAX_JSON_CHARS,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_record_raises_record_error(text):
    with pytest.raises(RecordError):
        Record.from_json(text)


def test_an_endless_integer_is_not_converted_and_its_key_named():
    with pytest.raises(RecordError, match='"dns_us" must be an integer'):
        Record.from_json('{"v":1,"state":"open","dns_us":' + "9" * 1_000_000 + "}")
    assert Record.from_json('{"v":1,"state":"open","later":' + "9" * 1_000_000 + "}") == MINIMAL


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(KEYS), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_data_is_a_record_or_a_record_error(data):
    try:
        record = Record.from_dict({"v": 1, "state": "open", **data})
    except RecordError:
        return
    assert Record.from_dict(json.loads(record.to_json())).to_json() == record.to_json()


# The lws form


def test_lws_form_is_spelled_and_ordered_as_lws_does():
    assert json.dumps(FULL.to_lws(), separators=(",", ":")) == (
        '{"peer":"2001:db8::2","dns_us":201,"dns_disp":1,"sockconn_us":203,"tls_us":204,'
        '"txn_resp_us":205,"dns":["192.0.2.7","2001:db8::2","fe80::1"],'
        '"prot_specific":{"protocol":"http","resp":404}}'
    )


@EXAMPLES
def test_lws_form_has_its_keys_alone(record):
    keys = ["peer", "dns_us", "dns_disp", "sockconn_us", "tls_us", "txn_resp_us", "dns"]
    assert list(record.to_lws())[:7] == keys
    assert list(record.to_lws())[7:] in ([], ["prot_specific"])


def test_lws_form_has_zeros_for_the_unknown():
    assert MINIMAL.to_lws() == {
        "peer": "(unset)",
        "dns_us": 0,
        "dns_disp": 0,
        "sockconn_us": 0,
        "tls_us": 0,
        "txn_resp_us": 0,
        "dns": [],
    }


def test_lws_form_tells_of_http_once_it_has_a_response():
    assert "prot_specific" not in Record(prot_specific={"protocol": "http"}).to_lws()
    assert "prot_specific" not in Record(prot_specific={"protocol": "smtp", "resp": 220}).to_lws()


def test_lws_form_fits_32_bits():
    assert Record(tls_us=2**32).to_lws()["tls_us"] == 2**32 - 1


# The schema


def test_schema_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


@EXAMPLES
def test_schema_takes_records(record):
    assert schema_errors(record.to_dict()) == []


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (SCHEMA, Record),
        (SCHEMA["$defs"]["attempt"], Attempt),
        (SCHEMA["$defs"]["tls"], Tls),
        (SCHEMA["$defs"]["turns"], Turns),
        (SCHEMA["$defs"]["tcp"], Tcp),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_schema_lists_the_fields(schema, kind):
    assert list(schema["properties"]) == list(kind._fields)
    assert schema["required"] == [key for key in kind._fields if key != "cmdline"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "path",
    [*((key,) for key in KEYS if key != "cmdline"),
     *(("tls", key) for key in Tls._fields), *(("tcp", key) for key in Tcp._fields),
     *(("turns", key) for key in Turns._fields), ("prot_specific", "protocol"),
     *(("attempts", 0, key) for key in Attempt._fields)],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_schema_wants_each_key_refuses_others_and_knows_its_type(path):
    *way, key = path

    def changed(change):
        data = level = FULL.to_dict()
        for step in way:
            level = level[step]
        change(level)
        return schema_errors(data)

    assert changed(lambda level: level.pop(key))
    assert changed(lambda level: level.update(later=1))
    assert changed(lambda level: level.update({key: [[]]}))
    assert not changed(lambda level: None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start", "2026-11-23 22:50:07"),
        ("state", "timeout"),
        ("host", ""),
        ("lport", 0),
        ("dns_disp", 4),
        ("dns_us", -1),
        ("peer", "(unset)"),
        ("peer", "192.0.2.999"),
        ("peer", "2001:db8:::1"),
        ("peer", "::1\n"),
        ("dns", ["example.org"]),
        ("family", "AF_INET"),
        ("dns_source", "mdns"),
        ("error", "111"),
        ("prot_specific", {"protocol": "http", "resp": 0}),
        ("attempts", [{**FULL.to_dict()["attempts"][0], "result": "bad"}]),
        ("tls", {**FULL.to_dict()["tls"], "alpn": ["h2", "http/1.1"]}),
        ("tls", {**FULL.to_dict()["tls"], "version": "772"}),
    ],
)
def test_schema_refuses(key, value):
    assert schema_errors({**FULL.to_dict(), key: value})


# The package


def test_conmon_imports_the_standard_library_alone():
    found = set()
    optional = {"h2", "psutil"}  # imported when asked for: tests/unit/test_layout.py says where
    for path in Path(conmon.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    assert "json" in found
    assert found - sys.stdlib_module_names - {"conmon"} == optional


def test_every_public_name_is_there():
    assert all(hasattr(conmon, name) for name in conmon.__all__)
    assert conmon.__all__ == sorted(conmon.__all__)
