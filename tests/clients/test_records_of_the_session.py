"""Every record that the session's programs have given, whatever they tested."""

import json

import jsonschema
import pytest

from conmon import Record
from tests.lab.daemon import ROOT

pytestmark = pytest.mark.client

MOST = 2000


@pytest.fixture(scope="module")
def records(watch):
    watch.settle()
    found = watch.daemon.records()
    assert found
    # The daemon sees the whole host: a flood of somebody else's would take minutes to validate.
    return found[:: len(found) // MOST + 1]


def test_every_record_fits_the_schema(records):
    schema = json.loads((ROOT / "docs" / "record.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for record in records for error in validator.iter_errors(record)] == []


def test_every_record_survives_conmon(records):
    again = [json.loads(Record.from_dict(record).to_json()) for record in records]
    assert again == records


def test_every_id_is_its_own(records):
    assert len({record["id"] for record in records}) == len(records)


def test_no_figure_is_zero_for_unknown(records):
    # On a real path or a loopback, each of these takes at least a microsecond; a connect() that
    # fails within the call need not.
    records = [r for r in records if not r["attempts"] or r["attempts"][-1]["us"] is not None]
    figures = ("sockconn_us", "tls_us", "txn_resp_us", "greeting_us", "duration_us")
    zeros = [(record["id"], name) for record in records for name in figures if record[name] == 0]
    assert zeros == []


def test_nothing_was_lost(records, daemon):
    assert not any(record["lost_before"] for record in records)
    assert "lost" not in daemon.stderr
