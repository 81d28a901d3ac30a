"""The control plane: shows where a run stands and passes on what the operator wants. Off the data path."""
