"""The store of video jobs: states, leases, order, limits, expiry, and what a kill may leave behind."""

import shutil
import threading
import time
from dataclasses import replace

import pytest

from mova_engine.errors import MovaError
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.job_times import JobTimes, StageSeconds
from mova_engine.serving.store_database import StoreLimits
from mova_engine.serving.store_errors import IdempotencyConflict, QueueFullError, QuotaError, StillStoppingError
from mova_engine.serving.video_job import VideoJob, VideoSettings, new_id

SETTINGS = VideoSettings(prompt="a red ball", width=48, height=48, frames=33, fps=24.0, seconds="1", size="48x48")


def new_job(owner="local", **settings) -> VideoJob:
    return VideoJob(id=new_id(), owner=owner, model="nano", settings=replace(SETTINGS, **settings), predicted_s=2.0)


@pytest.fixture
def store(tmp_path):
    found = JobStore.open(None, tmp_path / "store", StoreLimits(lease_s=0.0))
    yield found
    found.close()


def test_settings_survive_the_store(store):
    job = new_job(adapters={"style": 0.5}, window=(0.0, 1.5), negative_prompt="dark, \x7f odd “quotes”", seed=2**40)
    added = store.add(job)
    assert added.settings == job.settings
    assert (added.status, added.progress, added.queue_position) == ("queued", 0, 0)
    assert store.get(job.id) == added
    with pytest.raises(MovaError, match="unknown setting 'promt' of a video job. Did you mean 'prompt'"):
        VideoSettings.from_json(added.settings.to_json().replace('"prompt"', '"promt"'))


def test_a_job_goes_through_its_states(store):
    job = store.add(new_job())
    store.register("w1", "here", ["nano"])
    assert store.claim("w1", ["other"]) is None
    claimed = store.claim("w1", ["nano"])
    assert (claimed.id, claimed.status, claimed.worker, claimed.attempts) == (job.id, "in_progress", "w1", 1)
    assert store.progress(job.id, "w1", "step", 3, 16, 42.9, 1.5)
    assert store.progress(job.id, "w1", "step", 2, 16, 10.0, 1.7)
    seen = store.get(job.id)
    assert (seen.progress, seen.step, seen.steps, seen.eta_s, seen.queue_position) == (42, 2, 16, 1.7, None)
    assert not store.progress(job.id, "w2", "step", 3, 16, 50, 1.0)
    assert store.finish(job.id, "w1", {"bytes": 12})
    done = store.get(job.id)
    assert (done.status, done.progress, done.facts, done.eta_s) == ("completed", 100, {"bytes": 12}, None)
    assert done.created_at <= done.started_at <= done.completed_at < done.expires_at
    assert not store.fail(job.id, "w1", "internal_error", "late")


def test_earliest_deadline_first_then_age(store):
    plain, late, soon = (store.add(new_job(deadline_s=each)) for each in (None, 900.0, 60.0))
    assert [store.get(each.id).queue_position for each in (plain, late, soon)] == [2, 1, 0]
    assert store.get(plain.id).eta_s == pytest.approx(6.0)
    order = [store.claim("w", ["nano"]).id for _ in range(3)]
    assert order == [soon.id, late.id, plain.id]


def test_equal_jobs_are_claimed_together_and_others_are_not(store):
    first, same, other, lora = (
        store.add(new_job(**each)) for each in ({}, {"seed": 7, "prompt": "x"}, {"steps": 4}, {"adapters": {"a": 1}})
    )
    for mode in ("edit", "extension"):
        store.add(new_job(mode=mode))
    store.register("w", "here", ["nano"])
    job = store.claim("w", ["nano"])
    alike = store.claim_alike("w", job, 5)
    assert (job.id, [each.id for each in alike]) == (first.id, [same.id, lora.id])
    assert store.get(other.id).status == "queued"
    store.recover(["w"])
    again = store.claim("w2", ["nano"])
    assert (again.attempts, store.claim_alike("w2", again, 5)) == (2, [])


def test_a_dead_workers_job_is_made_again_once(store):
    job = store.add(new_job())
    for attempt in (1, 2):
        store.register(f"w{attempt}", "here", ["nano"])
        assert store.claim(f"w{attempt}", ["nano"]).attempts == attempt
        assert store.recover([f"w{attempt}"]) == [f"w{attempt}"]
    lost = store.get(job.id)
    assert (lost.status, lost.error_code) == ("failed", "worker_lost")


def test_a_worker_that_ends_in_order_costs_no_attempt(store):
    job = store.add(new_job())
    for number in range(3):
        store.register(f"w{number}", "here", ["nano"])
        assert store.claim(f"w{number}", ["nano"]).attempts == 1
        store.leave(f"w{number}")
    assert store.get(job.id).status == "queued"


def test_leases_are_heartbeats_not_times(tmp_path):
    store = JobStore.open(None, tmp_path, StoreLimits(lease_s=3600))
    store.register("alive", "here", ["nano"])
    job = store.add(new_job())
    store.claim("alive", ["nano"])
    assert store.recover() == []
    # A day passes by the wall clock: nothing that is decided here reads it.
    store.clock._day += 86400
    assert store.recover() == []
    store.limits = replace(store.limits, lease_s=-1.0)
    assert store.recover() == ["alive"]
    assert not store.beat("alive")
    assert store.get(job.id).status == "queued"
    assert not store.finish(job.id, "alive", {}), "who was taken for dead may not end the job of another"
    store.close()


def test_a_heartbeat_keeps_a_worker(store):
    store.limits = replace(store.limits, lease_s=0.05)
    store.register("w", "here", ["nano"])
    wait = threading.Event()
    for _ in range(4):
        wait.wait(0.04)
        assert store.beat("w")
        assert store.recover() == []
    wait.wait(0.06)
    assert store.recover() == ["w"]


def test_cancel_and_delete(store):
    waiting, running = store.add(new_job()), store.add(new_job())
    cancelled = store.request_cancel(waiting.id)
    assert (cancelled.status, cancelled.error_code) == ("failed", "cancelled")
    assert store.claim("w", ["nano"]).id == running.id
    assert store.wanted_of("w") == {running.id}
    assert store.request_cancel(running.id).status == "in_progress"
    assert store.wanted_of("w") == set()
    assert not store.progress(running.id, "w", "step", 1, 2, 10, None)
    assert not store.finish(running.id, "w", {})
    assert store.get(running.id).error_code == "cancelled"
    store.put(waiting.id, "first.png", b"x")
    assert store.delete(waiting.id)
    assert store.get(waiting.id) is None
    assert not store.file(waiting.id, "first.png").parent.exists()
    assert not store.delete(waiting.id)


def test_delete_answers_when_the_worker_has_stopped(store):
    other, job = store.add(new_job()), store.add(new_job())
    store.put(job.id, "first.png", b"x")
    assert [store.claim("w", ["nano"]).id for _ in range(2)] == [other.id, job.id]
    with pytest.raises(StillStoppingError):
        store.delete(other.id, wait_s=0.1)
    assert store.get(other.id).status == "in_progress"
    answered = []
    waits = threading.Thread(target=lambda: answered.append(store.delete(job.id)))
    waits.start()
    end = time.monotonic() + 60
    while not store.get(job.id).cancel_asked and time.monotonic() < end:
        time.sleep(0.01)
    assert store.stopped(job.id, "w")
    waits.join(10)
    assert answered == [True]
    assert store.get(job.id) is None
    assert not store.file(job.id, "first.png").parent.exists()


def test_a_deletion_that_a_kill_interrupted_is_completed(store):
    job = store.add(new_job())
    store.put(job.id, "first.png", b"x")
    store.register("w", "here", ["nano"])
    store.claim("w", ["nano"])
    with pytest.raises(StillStoppingError):
        store.delete(job.id, wait_s=0)
    store.recover(["w"])
    assert store.get(job.id) is None
    assert list(store.files.videos.iterdir()) == []


def test_idempotency_keys(store):
    job = new_job()
    first = store.add(job, "key", "hash")
    assert store.add(new_job(), "key", "hash").id == first.id
    with pytest.raises(IdempotencyConflict):
        store.add(new_job(), "key", "other hash")
    assert store.add(new_job("somebody"), "key", "other hash").id != first.id
    store.delete(first.id)
    assert store.add(new_job(), "key", "other hash").id != first.id


def test_limits_say_when_to_try_again(store):
    store.limits = replace(store.limits, queue=2, per_owner=1)
    store.add(new_job("a"))
    with pytest.raises(QuotaError) as refused:
        store.add(new_job("a"))
    assert refused.value.retry_after_s == pytest.approx(2.0)
    store.add(new_job("b"))
    with pytest.raises(QueueFullError):
        store.add(new_job("c"))
    assert store.counts() == {"queued": 2, "in_progress": 0, "completed": 0, "failed": 0}
    assert store.counts("a")["queued"] == 1


def test_owners_see_their_own(store):
    mine, other = store.add(new_job("a")), store.add(new_job("b"))
    assert store.get(other.id, "a") is None
    assert store.request_cancel(other.id, "a") is None
    assert not store.delete(other.id, "a")
    assert [each.id for each in store.list("a")[0]] == [mine.id]
    with pytest.raises(LookupError):
        store.list("a", after=other.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_hold_each_job_once(store, order):
    ids = [store.add(new_job()).id for _ in range(25)]
    seen, after, more = [], None, True
    while more:
        page, more = store.list(after=after, limit=10, order=order)
        seen += [each.id for each in page]
        after = seen[-1]
    assert seen == (ids if order == "asc" else ids[::-1])


def test_changes_are_seen_in_their_order(store):
    version, found = store.changed_since(0)
    assert found == ()
    first, second = store.add(new_job()), store.add(new_job())
    latest, found = store.changed_since(version)
    assert [each.id for each in found] == [first.id, second.id]
    assert store.changed_since(latest) == (latest, ())
    store.request_cancel(first.id)
    assert [each.id for each in store.changed_since(latest)[1]] == [first.id]


def test_expiry_takes_rows_and_files_and_gives_up_what_waited_too_long(store):
    done, waiting = store.add(new_job()), store.add(new_job())
    store.claim("w", ["nano"])
    store.put(done.id, "video.mp4", b"x")
    store.finish(done.id, "w", {})
    now = store.get(done.id).expires_at
    assert store.expire(now - 1) == []
    assert store.expire(now) == [done.id, waiting.id]
    assert store.get(done.id) is None
    assert not store.file(done.id, "video.mp4").parent.exists()
    assert store.get(waiting.id).error_code == "expired"


def test_files_of_no_job_are_swept(store):
    job, orphan = store.add(new_job()), new_id()
    store.put(job.id, "first.png", b"x")
    store.put(orphan, "first.png", b"x")
    gone = store.files.videos / ".gone-0123"
    shutil.copytree(store.file(orphan, "first.png").parent, gone)
    assert store.sweep() == []
    assert not gone.exists()
    assert store.sweep(0.0) == [orphan]
    assert store.file(job.id, "first.png").exists()


def test_paths_are_those_of_videos(store):
    for video, name in (
        ("../etc", "video.mp4"),
        ("video_" + "0" * 24, "../secret"),
        ("video_" + "g" * 24, "video.mp4"),
    ):
        with pytest.raises(MovaError):
            store.file(video, name)


def test_one_server_at_a_time_holds_a_store(store, tmp_path):
    with store.files.lock():
        other = JobStore.open(None, tmp_path / "store")
        with pytest.raises(MovaError, match="another mova serve has the store"), other.files.lock():
            raise AssertionError("the store was held twice")
        other.close()
    with store.files.lock():
        pass


def test_a_new_store_is_read_by_its_user_alone(tmp_path):
    store = JobStore.open(None, tmp_path / "new")
    store.close()
    for folder in (tmp_path / "new", tmp_path / "new" / "videos"):
        assert folder.stat().st_mode & 0o077 == 0


def test_many_threads_lose_nothing(store):
    jobs = [store.add(new_job()) for _ in range(20)]
    taken, lock = [], threading.Lock()

    def work(name: str) -> None:
        while (job := store.claim(name, ["nano"])) is not None:
            with lock:
                taken.append(job.id)
            assert store.finish(job.id, name, {})

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(job.id for job in jobs)
    assert store.counts()["completed"] == 20


def test_other_databases_and_other_versions_are_refused(tmp_path):
    with pytest.raises(MovaError, match="postgresql://"):
        JobStore.open("mysql://host/name", tmp_path)
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(MovaError, match="cannot be opened"):
        JobStore.open(None, tmp_path)


def test_seconds_are_planned_until_they_are_measured(store):
    times, tokens = JobTimes(store, "nano"), SETTINGS.video_tokens
    assert times.seconds(SETTINGS, 10, 2) is None
    times.plan(tokens, 2, 0.5)
    assert times.seconds(SETTINGS, 10, 2) == pytest.approx(10 * 0.5 + 0.5 + 2 * 0.5)
    assert times.seconds(SETTINGS, 10, 1) == pytest.approx(10 * 0.25 + 0.5 + 2 * 0.5)
    times.note(tokens, 2, StageSeconds(encode=1.0, step=0.1, decode=3.0))
    times.plan(tokens, 2, 0.5)
    assert times.seconds(SETTINGS, 10, 2) == pytest.approx(1 + 1 + 3), "what was measured counts"
    assert JobTimes(store, "another").stages(tokens, 2) is None
