"""Weights over the wire: the learner's word to the servers that are to receive them, and theirs to the learner."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH

# KEYS epoch transfer transfer_answers; ARGV epoch call ttl_ms (the answers to the call before are of no use any more)
CALL_TRANSFER = (
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + """
redis.call('del', KEYS[3])
redis.call('set', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
)

# KEYS transfer_answers; ARGV server_id answer
ANSWER_TRANSFER = ALLOW_AT_MAXMEMORY + "return redis.call('hset', KEYS[1], ARGV[1], ARGV[2])\n"

# KEYS transfer_wanted; ARGV version
WANT_FILES = ALLOW_AT_MAXMEMORY + "return redis.call('set', KEYS[1], ARGV[1])\n"
