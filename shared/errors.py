"""The exception tree. Every error that an operator may meet says what to do.

TrustbatchError
|-- ConfigError            a key, a value or a combination of them
|-- DecodeError            bytes that are not a group (dead-lettered, never retried)
|   |-- SchemaVersionError a newer major version than this reader knows
|   `-- SizeLimitError     larger than the reader is willing to allocate
|-- StreamError            Redis refused, or the stream is not as this run left it
|   |-- RefusedError       the command itself, not the connection: the same one would be refused again
|   |   `-- OutOfMemoryError Redis is at its memory limit: back-pressure, not failure
|   |-- DataLossError      Redis has fallen back into the past, or into nothing: the learner restores what it knows
|   `-- AccessError        Redis refuses user or password: a ConfigError too, never waited out
|-- StoreError             a policy version that is missing, torn or altered
|   |-- AnsweredError      the store has answered, and asking again changes nothing
|   |   `-- MissingError   what was asked for is not there
|   `-- WireOnlyError      a version that went over the wire, without files so far
|-- CheckpointError        a checkpoint that is missing, torn or altered
|-- FencedError            another learner took over this run
|-- DeadlineError          a bounded wait that ran out; names what was waited for
|-- EngineError            the generation engine failed or serves what it should not
|   |-- UnprovenVersionError  a loaded version does not behave as its probe says
|   |-- TransferError      weights did not arrive over the wire: the files are the other way
|   `-- SamplingError      sampling whose log-probs the learner cannot recompute
|-- EnvironmentFailure     an environment or scorer failed: infrastructure, never reward 0
`-- TrainingError          the learner cannot go on (non-finite steps in a row, ...)
"""

import math


class TrustbatchError(Exception):
    """Base of everything that trustbatch raises on purpose."""


class ConfigError(TrustbatchError):
    """A configuration that cannot work; the message names the key, the value and what is allowed."""


class DecodeError(TrustbatchError):
    """Bytes that are not a valid group. `field` is the path of the first offending field."""

    LONGEST = 1000  # characters of either: they go into logs and dead letters, and others chose their contents

    def __init__(self, field: str, problem: str) -> None:
        self.field = field[: self.LONGEST]
        self.problem = problem[: self.LONGEST]
        super().__init__(f"{self.field}: {self.problem}")


class SchemaVersionError(DecodeError):
    """The entry was written by a newer major version of the codec than this reader knows."""


class SizeLimitError(DecodeError):
    """A declared or actual size is beyond the reader's limits; nothing was allocated for it."""


class StreamError(TrustbatchError):
    """Redis refused a command, or the stream is not in the state that this run left it in."""


class RefusedError(StreamError):
    """Redis has answered, and would not do it."""


class OutOfMemoryError(RefusedError):
    """Redis is at `maxmemory`. The writer waits and tries again: this is back-pressure."""


class DataLossError(StreamError):
    """Redis does not remember this learner: it was emptied, or went back to an earlier state."""


class AccessError(ConfigError, StreamError):
    """Redis refuses redis.username or redis.password. Waiting does not help, so it is no outage."""


class StoreError(TrustbatchError):
    """A policy version that is missing, torn or altered."""


class BrokenDownloadError(StoreError):
    """A download broke off; the parts that came are used by the next one."""

    def __init__(self, message: str, came: int, missing: int) -> None:
        """Parts that came this time, and parts that still lack."""
        self.came, self.missing = came, missing
        super().__init__(message)


class AnsweredError(StoreError):
    """The store has answered, and would answer the same again."""


class MissingError(AnsweredError):
    """What was asked for is not in the store."""


class WireOnlyError(StoreError):
    """A version whose weights went over the wire and are in no file (yet): ask the learner for the files."""


class CheckpointError(TrustbatchError):
    """A checkpoint that is missing, torn or altered."""


class FencedError(TrustbatchError):
    """Another learner holds this run now; this one must stop without writing anything more."""


class DeadlineError(TrustbatchError):
    """A bounded wait ran out. The message says what was waited for and for how long."""


class EngineError(TrustbatchError):
    """The generation engine failed."""


class UnprovenVersionError(EngineError):
    """A policy version was loaded, but its probe does not answer as the learner's did, or a tensor is not its own."""

    def __init__(self, message: str, nats: float = math.nan) -> None:
        """`nats`: by how much a log-prob of the probe is off; NaN where it could not be measured."""
        self.nats = nats
        super().__init__(message)


class TransferError(EngineError):
    """Weights that were to come over the wire did not arrive, or not as they were published.

    The engine lives. Where `untouched` is False it holds a mixture of weights, and draws nothing before a load.
    """

    def __init__(self, message: str, *, untouched: bool = True) -> None:
        self.untouched = untouched
        super().__init__(message)


class SamplingError(EngineError):
    """Sampling settings whose behavior_logprobs the learner could not recompute."""


class EnvironmentFailure(TrustbatchError):
    """An environment or a scorer failed or ran out of time. Never a reward."""


class TrainingError(TrustbatchError):
    """The learner stops: training cannot go on, and the message says why."""
