"""The users of deploy/redis/users.acl on a real Redis: each does all of its own work, and nothing of another's."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.sampler import Sampler
from services.series import Window, read
from shared.admission import Admission, Credit
from shared.codec import encode_group
from shared.config import load_config
from shared.control import ControlState, EvaluationResult, Latest
from shared.errors import AccessError, StreamError
from shared.history import History
from shared.intervals import Intervals
from shared.keys import Keys
from shared.lag import Asked
from shared.letters import Letter
from shared.redis_client import Client, connect, memory_of, server_version
from shared.runs import known_runs, register
from shared.series import TIERS
from shared.steering import Steering
from shared.stream import Appended, GroupReader, GroupWriter, backlog
from shared.transfer import Answer, Call, Transfers
from shared.wishes import ADMISSION, Wish, Wishes
from tests.builders import group
from tests.redis7 import Redis7

pytestmark = pytest.mark.system

FOLDER = Path(__file__).parents[2] / "deploy" / "redis"
USERS = ("learner", "rollout", "control-plane", "operator")
CREDIT = Credit(versions=5, groups_per_version=50, max_bytes=2**30, group_bytes=1_000, lease_s=30)
KEYS = Keys("mine")
NUMBERS = range(400)  # of blocks that a test may have left
OTHER = Keys("other")


def password(user: str) -> str:
    return f"{user}-0123456789"


def filled_in(output: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    given = {f"{user.upper().replace('-', '_')}_PASSWORD": password(user) for user in USERS} | environ
    command = [str(FOLDER / "users.sh"), str(FOLDER / "users.acl"), str(output)]
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(command, env=path | given, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis7]:
    folder = tmp_path_factory.mktemp("users")
    done = filled_in(folder / "users.acl", RUN_ID="mine")
    assert done.returncode == 0, done.stderr
    options = ("--aclfile", str(folder / "users.acl"), "--maxmemory-policy", "noeviction")
    server = Redis7(folder, *options, username="operator", password=password("operator"))
    yield server
    server.kill()


@pytest.fixture
def at(server: Redis7) -> Iterator[Callable[[str], Client]]:
    """Connects as a user, through the configuration, as every process does; the run is empty at first."""
    opened: list[Client] = []

    def connected(user: str) -> Client:
        given = [f"redis.url=redis://127.0.0.1:{server.port}", f"redis.username={user}"]
        config = load_config(None, given, {"TRUSTBATCH__REDIS__PASSWORD": password(user)})
        opened.append(connect(config))
        return opened[-1]

    operator = connected("operator")
    names = [name for name in dir(Keys) if isinstance(getattr(Keys, name), property)]
    both = (KEYS.series, KEYS.fleet)
    blocks = [KEYS.block(books, tier, n) for books in both for tier in TIERS for n in NUMBERS]
    blocks += [f"{books}:open:{tier}" for books in both for tier in TIERS]
    operator.delete(KEYS.heartbeat("learner"), *(getattr(KEYS, name) for name in names), *blocks)
    yield connected
    for client in opened:
        client.close()


class Run:
    """The three ends of one run, each with the rights of its own user."""

    def __init__(self, at: Callable[[str], Client]) -> None:
        self.learner, self.rollout, self.plane = at("learner"), at("rollout"), at("control-plane")
        self.control = ControlState(self.learner, KEYS)
        self.epoch = self.control.take_epoch()
        self.reader = GroupReader(self.learner, KEYS, self.epoch)
        self.reader.open(Intervals())
        self.control.announce(self.epoch, Latest(0, -1, 0), 0, [])
        self.admission = Admission(self.rollout, KEYS, "r0", CREDIT)
        self.writer = GroupWriter(self.rollout, KEYS, "r0")


@pytest.fixture
def run(at: Callable[[str], Client]) -> Run:
    return Run(at)


# -- what each does ---------------------------------------------------------------------------------
def test_rollout_and_learner_do_all_of_their_work(run: Run) -> None:
    for client in (run.learner, run.rollout, run.plane):
        assert server_version(client) >= (7, 0)
    mine = ControlState(run.rollout, KEYS)
    mine.beat("rollout:r0", {"kind": "rollout", "lag": 0}, 30)
    first, second, third = run.admission.lease(3, 0).indices
    assert run.admission.renew() == 3
    assert run.admission.lease(1, 0, Asked(1, wish=b"8")).reason == "another lag is asked for"
    assert (mine.descent(), mine.lag_wish(), run.writer.counted()) == ({0: -1}, Wish(), 0)
    assert run.admission.held() == [first, second, third]
    payload = encode_group(group(first, "mine"))
    assert run.writer.append(first, f"mine:{first}", payload) is Appended.STORED
    assert run.writer.append(first, f"mine:{first}", payload) is Appended.DUPLICATE
    assert run.writer.append_failure(second, f"mine:{second}", "scorer timed out") is Appended.STORED
    assert run.admission.give_back([third], failed=True) == [1]
    assert run.admission.attempts(third) == 1
    assert (mine.latest(), mine.parents(), mine.paused()) == (Latest(0, -1, 0), {0: -1}, False)
    assert mine.phase() == ("starting", "")
    mine.add_event("rollout server failed", "text", by="r0")

    assert run.reader.oldest_s() is not None
    entries = run.reader.read(10)
    assert [entry.prompt_index for entry in entries] == [first, second]
    letter = Letter(entries[1].group_id, second, "failure", "text", "mine", 1.0)
    run.reader.dead_letter(entries[1], letter, max_bytes=2**20)
    run.reader.release([second])
    run.control.announce(run.epoch, Latest(1, 0, 1), 0, [first])
    assert run.reader.delete([entries[0].entry_id]).bytes > 0
    run.control.set_phase("running")
    run.control.add_history({"step": 1})
    run.control.add_examples(1, [{"step": 1}], run.epoch, 1000)
    assert ControlState(run.plane, KEYS).examples(step=1) == [{"step": 1}]
    assert memory_of(run.plane).used > 0
    run.control.beat("learner", {"kind": "learner"}, 30)
    assert backlog(run.learner, KEYS).groups == 0
    call = Call(run.epoch, 1, "invite", 1, invited=["r0"])
    told, heard = Transfers(run.learner, KEYS), Transfers(run.rollout, KEYS)
    told.call(call, 60)
    assert heard.current() == call
    heard.answer("r0", Answer(run.epoch, 1, "here"))
    assert told.answers(call, ["r0"]) == {"r0": Answer(run.epoch, 1, "here")}
    heard.want(1)
    assert told.wanted() == 1
    told.satisfied()
    with pytest.raises(StreamError, match="can't access"):
        heard.call(call, 60)
    mine.leave("rollout:r0")
    run.control.leave("learner")
    assert run.control.members() == {}


def test_evaluations_go_from_the_learner_to_a_rollout_server_and_back(run: Run) -> None:
    mine = ControlState(run.rollout, KEYS)
    run.control.request_evaluation(0)
    assert mine.pending_evaluations() == [0]
    assert mine.claim_evaluation(0, 30, "rollout:r0")
    mine.release_evaluation(0)
    assert mine.claim_evaluation(0, 30, "rollout:r0")
    mine.finish_evaluation(0, EvaluationResult(0, 0.5, 8, 3.0, 1.0, "r0", 1.0))
    assert [result.accuracy for result in run.control.evaluations()] == [0.5]


def test_the_control_plane_sees_everything_and_writes_what_is_wanted(run: Run) -> None:
    plane = ControlState(run.plane, KEYS)
    plane.beat("control-plane:here", {"kind": "control-plane"}, 30)
    plane.set_paused(True)
    assert run.control.paused()
    assert plane.wish_lag(b"8", "operator")
    assert ControlState(run.rollout, KEYS).lag_wish().text == b"8"
    assert backlog(run.plane, KEYS).groups == 0
    assert plane.phase() == ("starting", "")
    assert (plane.history(), len(plane.events()), plane.evaluations(), plane.pending_evaluations()) == ([], 1, [], [])
    assert plane.members() == {"control-plane:here": {"kind": "control-plane"}}
    plane.leave("control-plane:here")


def test_the_control_planes_controller_acts(run: Run) -> None:
    steering = Steering(run.plane, KEYS)
    assert steering.claim("control-plane:here", 30)
    wanted = {"lag": "4", "lag_by": "controller", "paused": "1", "paused_by": "controller", "publish_above": "0"}
    assert steering.act("control-plane:here", {"lag": 4}, {"lag": ""}, wanted, ("controller", "text"))
    assert (steering.state(), steering.holder()) == ({"lag": 4}, "control-plane:here")
    assert (run.control.lag_wish().text, run.control.paused_by(), run.control.publish_above()) == (
        b"4",
        "controller",
        0,
    )
    assert ControlState(run.plane, KEYS).events()[0]["by"] == "controller"


def test_the_learner_keeps_numbers_over_time_and_everybody_who_looks_reads_them(run: Run) -> None:
    register(run.learner, KEYS, 10)
    history = History(run.learner, KEYS)
    for number in range(300):
        history.add({"step": number, "at": 60.0 * number}, run.epoch)
    assert history.rewind(200, run.epoch) == 99
    window = Window(None, None, 1000)
    (line,) = read(run.plane, KEYS, ["step"], None, window).lines
    assert len(line.cells) == 201
    assert [found.id for found in known_runs(run.plane, KEYS)] == ["mine"]
    assert [found.id for found in known_runs(run.plane, OTHER)] == ["mine"], "another one may not be read"


def test_the_control_plane_samples_the_fleet_and_writes_every_wish(run: Run) -> None:
    ControlState(run.rollout, KEYS).beat("rollout:r0", {"kind": "rollout", "lag": 2, "in_flight": 1}, 30)
    sampler = Sampler(run.plane, KEYS, 2**23)
    for slot in (-1, 1):
        run.learner.hset(KEYS.fleet, "slot", slot)
        assert sampler.sample()
    run.learner.hset(KEYS.fleet, "open:minutes", 0)  # a minute that is over, and blocks beyond their share
    run.learner.hset(KEYS.fleet, "slot", -1)
    assert Sampler(run.plane, KEYS, 0).sample()
    assert read(run.plane, KEYS, ["servers.in_flight"], "r0", Window(None, None, 100)).lines
    wishes, mine = Wishes(run.plane, KEYS), Wishes(run.rollout, KEYS)
    assert wishes.make(ADMISSION, b'{"max_staleness": 1}', "operator", "told")
    assert wishes.drain("r0", "operator", True)
    assert run.admission.lease(1, 0).reason == "draining"
    assert wishes.dismiss("r0", "here 1", "operator")
    assert mine.draining()["r0"].leave == "here 1"
    mine.dismissed("r0")
    wishes.drain("r9", "operator", True)
    wishes.removed("r9", "operator")
    assert wishes.draining() == {}
    assert wishes.requeue("1-1", "operator")
    Wishes(run.learner, KEYS).requeued("1-1", "requeued", "learner")
    assert wishes.requeues() == {}


def test_the_operator_does_what_the_command_line_does(run: Run, at: Callable[[str], Client]) -> None:
    client = at("operator")
    control = ControlState(client, KEYS)
    control.set_phase("starting", "resumed")
    control.add_event("started", "text", by="supervisor")
    control.set_paused(True)
    client.xadd(KEYS.dead_letters, {"reason": "undecodable"})
    assert len(client.xrange(KEYS.dead_letters)) == 1
    assert client.xdel(KEYS.dead_letters, *[entry for entry, _ in client.xrange(KEYS.dead_letters)]) == 1


def test_after_a_restart_of_redis_the_learner_brings_the_scripts_back(run: Run, at: Callable[[str], Client]) -> None:
    at("operator").execute_command("SCRIPT", "LOAD", "return 1")
    # The users may not flush scripts, so a script that Redis has never seen stands for a restart.
    with pytest.raises(redis.exceptions.NoScriptError):
        run.rollout.evalsha("0" * 40, 0)
    with pytest.raises(redis.exceptions.NoPermissionError):
        run.rollout.script_load("return 1")
    run.control.beat("learner", {"kind": "learner"}, 30)
    assert len(run.admission.lease(1, 0).indices) == 1


# -- what each does not -----------------------------------------------------------------------------
def refused(client: Client, command: str, run: str = "mine") -> None:
    """A command, words that begin with a colon being keys of the run, must be refused for lack of rights."""
    words = [f"trustbatch:{{{run}}}{word}" if word.startswith(":") else word for word in command.split()]
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*words)


def commands(text: str) -> list[str]:
    """Commands that are written one behind the other."""
    return text.split(" / ")


SERVER_COMMANDS = commands(
    "FLUSHALL / FLUSHDB / KEYS * / SCAN 0 / RANDOMKEY / CONFIG GET * / CONFIG SET maxmemory 1 / SHUTDOWN NOSAVE / "
    "ACL LIST / ACL WHOAMI / ACL SETUSER rollout +@all / SAVE / BGREWRITEAOF / REPLICAOF 127.0.0.1 1 / "
    "MONITOR / CLIENT LIST / CLIENT KILL TYPE normal / CLIENT PAUSE 1 / MODULE LIST / SLOWLOG GET / SCRIPT FLUSH / "
    "SCRIPT KILL / EVAL return 0 / FUNCTION LOAD x / FCALL f 0 / SWAPDB 0 1 / MIGRATE 127.0.0.1 1 k 0 1 / "
    "PUBLISH c m / SUBSCRIBE c / COMMAND LIST / LATENCY RESET / CLUSTER INFO / EVALSHA_RO x 0"
)


@pytest.mark.parametrize("user", USERS)
def test_nobody_touches_the_server_itself(at: Callable[[str], Client], user: str) -> None:
    client = at(user)
    for command in SERVER_COMMANDS:
        refused(client, command)


@pytest.mark.parametrize("user", USERS)
def test_nobody_touches_another_run(at: Callable[[str], Client], user: str) -> None:
    client = at(user)
    for command in commands(
        "GET :cursor / SET :clock 1 / XADD :groups * a b / DEL :groups / HSET :desired paused 1 / SET x 1 / GET x / "
        "XREAD STREAMS :groups 0 / DEL :x:never"
    ):
        refused(client, command, run="other")
    with pytest.raises(AccessError):
        Admission(client, OTHER, "r0", CREDIT).lease(1, 0)


ROLLOUT_MAY_NOT = commands(
    "DEL :groups / UNLINK :groups / XDEL :groups 1-1 / XTRIM :groups MAXLEN 0 / XRANGE :groups - + / XLEN :groups / "
    "EXPIRE :groups 1 / XACK :groups learner 1-1 / RENAME :groups :events / XSETID :groups 9-9 / DUMP :groups / "
    "PERSIST :groups / XPENDING :groups learner / XGROUP DESTROY :groups learner / XINFO STREAM :groups / "
    "XREADGROUP GROUP learner rank0 STREAMS :groups > / XREAD STREAMS :groups 0 / XCLAIM :groups learner x 0 1-1 / "
    "XREAD STREAMS :dead_letters 0 / XADD :dead_letters * a b / DEL :dead_letters / XADD :history * row {} / "
    "XRANGE :history - + / XREVRANGE :events + - / INCR :epoch / SET :epoch 9 / GET :epoch / DEL :epoch / "
    "HSET :latest policy_version 99 / HDEL :latest policy_version / DEL :latest / HSET :parents 99 0 / "
    "SET :controller {} / SET :controller_lease x / "
    "HSET :phase phase finished / HSET :desired paused 1 / HDEL :desired paused / SET :cursor 0 / SET :bytes 0 / "
    "DECRBY :bytes 9 / DEL :cursor / DEL :leases / DEL :owners / DEL :unapplied / SREM :unapplied 1 / "
    "SMEMBERS :unapplied / SET :heartbeat:learner {} / DEL :heartbeat:learner / SET :heartbeat:control-plane:x {} / "
    "HSET :draining r0 x / HSET :requeues 1-1 x / HSET :series rows 0 / DEL :series:hours:1 / HSET :fleet slot 9 / "
    "HGETALL :series / LRANGE :series:open:steps 0 -1 / HGETALL trustbatch:runs / HSET trustbatch:runs mine {} / "
    "DEL :members / HGETALL :evaluation_results / DEL :evaluation_results / GETDEL :clock / APPEND :clock x / "
    "SETRANGE :clock 9 x / SET :groups:x 1 / COPY :latest :clock / OBJECT ENCODING :groups / DBSIZE / SCRIPT LOAD x"
)


@pytest.mark.parametrize("command", ROLLOUT_MAY_NOT)
def test_a_rollout_server_may_do_nothing_beyond_its_work(at: Callable[[str], Client], command: str) -> None:
    refused(at("rollout"), command)


def test_a_rollout_server_may_not_write_with_the_learners_scripts_either(run: Run) -> None:
    (index,) = run.admission.lease(1, 0).indices
    run.writer.append(index, f"mine:{index}", b"x")
    pretended = ControlState(run.rollout, KEYS)
    reader = GroupReader(run.rollout, KEYS, run.epoch)
    with pytest.raises(StreamError):
        pretended.announce(run.epoch, Latest(7, 0, 7), 0, [index])
    with pytest.raises(StreamError):
        reader.delete(["0-1"])
    with pytest.raises(StreamError):
        reader.release([index])
    with pytest.raises(StreamError):
        pretended.beat("learner", {"kind": "learner"}, 30)
    with pytest.raises(StreamError):
        reader.open(Intervals())
    assert run.control.latest() == Latest(0, -1, 0)
    assert run.control.status_of("learner") is None
    assert backlog(run.learner, KEYS).unapplied == 1


CONTROL_PLANE_MAY_NOT = commands(
    "XADD :groups * a b / XDEL :groups 1-1 / DEL :groups / INCR :epoch / HSET :latest policy_version 99 / "
    "HSET :phase phase finished / SET :cursor 0 / SET :heartbeat:learner {} / SADD :unapplied 1 / ZADD :leases 1 1 / "
    "XADD :history * row {} / DEL :dead_letters / DEL :desired / SCRIPT LOAD x / HSET :evaluation_results 0 {} / "
    "HDEL :desired lag / DEL :controller / DEL :controller_lease / "
    "XREADGROUP GROUP learner rank0 STREAMS :groups > / DEL :heartbeat:rollout:r0 / HSET :series rows 0 / "
    "HSET :series:hours:1 step x / DEL :series:hours:1 / LTRIM :series:open:steps 0 0 / RPUSH :series:open:steps x / "
    "XDEL :dead_letters 1-1 / HSET trustbatch:runs mine {} / HDEL trustbatch:runs mine / SREM :unapplied 1 / "
    "DEL :draining / DEL :requeues / DEL :events"
)


@pytest.mark.parametrize("command", CONTROL_PLANE_MAY_NOT)
def test_the_control_plane_may_not_touch_the_data(at: Callable[[str], Client], command: str) -> None:
    refused(at("control-plane"), command)


def test_without_a_password_there_is_nothing(server: Redis7) -> None:
    for user, secret in ((None, None), ("rollout", "wrong"), ("default", ""), ("nobody", password("rollout"))):
        client = redis.Redis(port=server.port, username=user, password=secret, retry=Retry(NoBackoff(), 0))
        with pytest.raises(redis.AuthenticationError):
            client.ping()
        client.close()


# -- the file ---------------------------------------------------------------------------------------
def test_the_file_holds_no_password_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    output = tmp_path / "users.acl"
    assert filled_in(output).returncode == 0
    text = output.read_text()
    assert not any(password(user) in text for user in USERS)
    assert not re.search(r"@[A-Z_]+@|#(?![0-9a-f]{64} )", text), "a place that was not filled in"
    assert output.stat().st_mode & 0o077 == 0
    assert "trustbatch:{*}:groups" in text, "without RUN_ID: all runs"


def test_passwords_may_be_mounted_files_and_a_missing_or_weak_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-a-file-0123456789\n")
    output = tmp_path / "users.acl"
    done = filled_in(output, LEARNER_PASSWORD="", LEARNER_PASSWORD_FILE=str(tmp_path / "secret"))
    assert done.returncode == 0, done.stderr
    for environ in ({"ROLLOUT_PASSWORD": ""}, {"ROLLOUT_PASSWORD": "short"}, {"RUN_ID": "a b"}, {"RUN_ID": "a/e s//"}):
        output.unlink(missing_ok=True)
        done = filled_in(output, **environ)
        assert done.returncode == 2
        assert not output.exists()
        assert "short" not in done.stderr
