"""Sessions of `deep`: who may have one, and how many."""

from __future__ import annotations

import os
import subprocess
import threading
from types import SimpleNamespace

import pytest

from monitor import deep
from monitor.api.access import Asker
from monitor.deep import Deep, DeepBusy, DeepForbidden, DeepGone

USER = Asker(1000, sees_all=False)
OTHER = Asker(1001, sees_all=False)
ROOT = Asker(0, sees_all=True)


class Probes:
    def __init__(self):
        self.open_pids = set()

    def call_ns(self):
        return 1000.0

    def open(self, pid):
        self.open_pids.add(pid)
        return SimpleNamespace(pid=pid, libraries={})

    def calls(self, target):
        return 0

    def refresh(self, target):
        pass

    def close(self, target):
        self.open_pids.discard(target.pid)


@pytest.fixture
def sessions():
    core = SimpleNamespace(plain=SimpleNamespace(drop=lambda pid: None))
    made = Deep(None, core, None, threading.RLock())
    made._probes = Probes()
    yield made
    made.close()


@pytest.fixture
def processes():
    made = [subprocess.Popen(["sleep", "60"]) for _ in range(6)]
    yield [process.pid for process in made]
    for process in made:
        process.kill()
        process.wait()


@pytest.fixture
def owners(monkeypatch, processes):
    owners = {pid: {USER.uid} for pid in processes}
    monkeypatch.setattr(deep, "_whose", owners.__getitem__)
    return owners


def begin(sessions, pid, asker):
    return sessions.begin(pid, asker, 60, 25)


def test_one_user_has_two_places_and_the_last_is_roots(sessions, processes, owners):
    owners.update({pid: {OTHER.uid} for pid in processes[3:]})
    begin(sessions, processes[0], USER)
    begin(sessions, processes[1], USER)
    with pytest.raises(DeepBusy, match="for this user"):
        begin(sessions, processes[2], USER)
    begin(sessions, processes[3], OTHER)
    with pytest.raises(DeepBusy, match="3 processes"):
        begin(sessions, processes[4], OTHER)
    begin(sessions, processes[4], ROOT)
    with pytest.raises(DeepBusy, match="4 processes"):
        begin(sessions, processes[5], ROOT)
    assert len(sessions) == 4


def test_a_pid_that_is_used_again_is_not_the_process(sessions, processes, monkeypatch):
    def look(pid):
        os.kill(pid, 9)  # what was looked at is another's by then
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return {USER.uid}

    monkeypatch.setattr(deep, "_whose", look)
    with pytest.raises(DeepGone):
        begin(sessions, processes[0], USER)
    assert not sessions._probes.open_pids


def test_it_ends_when_the_process_is_another_users(sessions, processes, owners):
    first, second, third = processes[:3]
    feeds = {pid: begin(sessions, pid, USER) for pid in (first, second)}
    rooted = begin(sessions, third, ROOT)
    owners[first] = owners[third] = {USER.uid, 0}
    sessions.executed(first)
    assert feeds[first].ended
    assert b'"why":"user"' in list(iter(feeds[first].take, None))[-1]
    owners[second] = {USER.uid, 0}
    sessions.tick(0)
    assert feeds[second].ended
    assert not rooted.ended
    assert sessions._probes.open_pids == {third}


def test_what_becomes_anothers_while_probes_are_put_in_is_not_read(sessions, processes, owners):
    pid = processes[0]
    put_in = sessions._probes.open

    def becomes(pid):
        owners[pid] = {0}
        return put_in(pid)

    sessions._probes.open = becomes
    with pytest.raises(DeepForbidden):
        begin(sessions, pid, USER)
    assert not sessions._probes.open_pids
    owners[pid] = {USER.uid}
    sessions._probes.open = put_in
    begin(sessions, pid, USER)
