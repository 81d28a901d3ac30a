"""The contract between the processes: types, codec, stream, store, control state, config, metrics."""
