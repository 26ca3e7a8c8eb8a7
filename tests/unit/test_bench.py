"""What bench/ reads and sums up, without a machine to measure."""

import json

import pytest

from bench import figures
from bench.programs import _SHORT_NAMES
from monitor.kernel.programs import PROGRAMS


def test_a_summary_has_the_middle_and_the_range():
    summary = figures.summarize([5.0, 1.0, 2.0])
    assert (summary.median, summary.low, summary.high, summary.runs) == (2.0, 1.0, 5.0, 3)


def test_nothing_measured_is_no_summary():
    with pytest.raises(ValueError, match="nothing was measured"):
        figures.summarize([])


def test_a_ratio_is_taken_pair_by_pair():
    # the machine grew ten times faster between the pairs; conmond took a tenth of each
    assert figures.ratio([100, 200, 1000], [90, 180, 900]) == pytest.approx(0.9)


def test_a_ratio_needs_pairs():
    with pytest.raises(ValueError):
        figures.ratio([100, 200], [90])


def test_pss_is_the_total_and_not_one_of_its_parts():
    rollup = "5-7 ---p 0 00:00 0 [rollup]\nRss:  27356 kB\nPss:  17104 kB\nPss_Anon:  11932 kB\n"
    assert figures.parse_pss_bytes(rollup) == 17104 * 1024


def test_a_rollup_without_pss_is_an_error():
    with pytest.raises(ValueError, match="Pss"):
        figures.parse_pss_bytes("Rss: 1 kB\n")


def test_time_on_cpu_is_the_first_figure():
    assert figures.parse_schedstat_ns("123456789 23 7\n") == 123456789


def test_programs_are_found_once_among_descriptors():
    program = "pos:\t0\nprog_type:\t17\nprog_id:\t2352\nrun_time_ns:\t0\n"
    link = "pos:\t0\nlink_type:\traw_tracepoint\nprog_id:\t2352\n"
    assert figures.program_ids([program, link, "pos:\t0\nflags:\t02\n"]) == {2352}


def test_every_program_is_told_by_what_the_kernel_keeps_of_its_name():
    assert set(_SHORT_NAMES.values()) == {program.name for program in PROGRAMS}


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n", "AMD EPYC"),
        ("processor\t: 0\nFeatures\t: fp\n", "unknown CPU"),
    ],
)
def test_the_processor_has_a_name_or_none(cpuinfo, model):
    assert figures.cpu_model(cpuinfo) == model


def test_the_load_says_what_it_did():
    load = figures.parse_load('{"established":23,"failed":2,"seconds":0.5}\n')
    assert (load.established, load.failed, load.rate) == (23, 2, 46)


@pytest.mark.parametrize("line", ["", "usage: load\n", '{"established":1}'])
def test_what_is_not_the_loads_word_is_an_error(line):
    with pytest.raises(ValueError):
        figures.parse_load(line)


def record(pid, ident, **changed):
    data = {
        "id": ident, "state": "closed", "pid": pid, "lport": 40000, "sockconn_us": 23,
        "txn_resp_us": 5, "duration_us": 31, "prot_specific": {"protocol": "http"},
    }  # fmt: skip
    return json.dumps({**data, **changed}, separators=(",", ":")).encode() + b"\n"


def test_records_of_the_load_alone_are_counted():
    lines = [record(7, "a"), record(77, "b"), record(7, "c")]
    counted = figures.count_records(lines, 7)
    assert (counted.records, counted.twice, counted.incomplete) == (2, 0, 0)


def test_a_record_that_comes_twice_is_told():
    assert figures.count_records([record(7, "a"), record(7, "a")], 7).twice == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"lport": None},
        {"sockconn_us": None},
        {"txn_resp_us": None},
        {"duration_us": None},
        {"prot_specific": None},
        {"state": "failed"},
    ],
)
def test_a_record_with_less_than_the_load_did_is_told(changed):
    assert figures.count_records([record(7, "a", **changed)], 7).incomplete == 1
